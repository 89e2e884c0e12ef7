"""Tensors of a file one at a time."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from waterfill.errors import CorruptFile
from waterfill.export.safetensors import Slot
from waterfill.model.entry import Entry, decode
from waterfill.part import Part
from waterfill.storage import FileReader, manifest


def read_manifest(src: FileReader) -> tuple[list[str], list[manifest.Row], dict[str, str]]:
    """Names, what the manifest says of each, and aliases. Raises CorruptFile."""
    names = list(src.names)
    rows = manifest.unpack(src.manifest.get("tensors"), len(names))
    aliases, notes = src.manifest.get("aliases", {}), src.manifest.get("notes", {})
    if not isinstance(aliases, dict) or not isinstance(notes, dict):
        raise CorruptFile("the manifest's aliases and notes are not what a writer would have written; it is damaged")
    known = dict.fromkeys(names)
    if not all(isinstance(own, str) and own in known and alias not in known for alias, own in aliases.items()):
        raise CorruptFile("an alias names a tensor that the file does not hold; it is damaged")
    return names, rows, aliases


def read_metadata(src: FileReader) -> dict[str, str]:
    """The texts that the header of the original `.safetensors` file held. Raises CorruptFile."""
    notes = src.manifest.get("notes", {})
    found = notes.get("metadata", {}) if isinstance(notes, dict) else None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise CorruptFile("the manifest's metadata are not what a writer would have written; it is damaged")
    return found


def load_tensor(path: "str | Path", name: str) -> Tensor:
    """One tensor of a file, the others unread. Raises CorruptFile, BadInput for a name it does not hold."""
    with FileReader(path) as src:
        names, rows, aliases = read_manifest(src)
        own = aliases.get(name, name)
        blob = src.blob(own)
        layout = rows[names.index(own)].layout
        return Entry(own, layout, decode(blob, layout, own)).tensor()


class CompressedTensors(Mapping[str, Tensor]):
    """The tensors of an open .wf file by name, tied ones included; each is decoded when it is asked for."""

    def __init__(self, src: FileReader) -> None:
        self._src = src
        names, rows, self._aliases = read_manifest(src)
        self._layouts = {name: row.layout for name, row in zip(names, rows, strict=True)}

    def slots(self, dtype: torch.dtype | None = None) -> list[Slot]:
        """Every tensor, those with the largest entries first; floating-point ones as `dtype`, if that is given."""
        sources = {name: name for name in self._layouts} | self._aliases
        slots = []
        for name, source in sources.items():
            layout = self._layouts[source]
            kept = layout.dtype if dtype is None or not layout.dtype.is_floating_point else dtype
            slots.append(Slot(name, layout.shape, kept, source))
        return sorted(slots, key=lambda slot: (-slot.dtype.itemsize, slot.name))

    def __getitem__(self, name: str) -> Tensor:
        own = self._aliases.get(name, name)
        return self._layouts[own].join([part.dense() for part in self.parts(own)])

    def parts(self, name: str) -> tuple[Part, ...]:
        """The parts of one tensor, tied names excluded. Raises CorruptFile, NewerFormat."""
        return decode(self._src.blob(name), self._layouts[name], name)

    def __iter__(self) -> Iterator[str]:
        yield from self._layouts
        yield from self._aliases

    def __len__(self) -> int:
        return len(self._layouts) + len(self._aliases)
