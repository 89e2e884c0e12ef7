"""What is exported: the tensors of a file, of a compressed folder or of a network in memory, as parts by name."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from waterfill.model.compressed import CompressedModel
from waterfill.model.entry import Entry
from waterfill.model.lazy import CompressedTensors
from waterfill.network.layout import Layout
from waterfill.storage import FileReader


@dataclass(frozen=True)
class Source:
    """layouts: of the tensors by name, tied ones once. aliases: tied names, each with the one that holds the parts.

    entry: a tensor as parts, by its own name. notes: of the file. folder: of the transformers model that the file lies
    in, if it does. metadata: texts of the header of the original.
    """

    layouts: Mapping[str, Layout]
    aliases: Mapping[str, str]
    entry: Callable[[str], Entry]
    notes: Mapping[str, Any]
    folder: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """A tensor restored, by any of its names."""
        return self.entry(self.aliases.get(name, name)).tensor()

    @property
    def owners(self) -> dict[str, str]:
        """By every name the one that holds its parts."""
        return {name: name for name in self.layouts} | dict(self.aliases)

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors restored, tied ones under each name."""
        tensors = {name: self.entry(name).tensor() for name in self.layouts}
        return tensors | {alias: tensors[own] for alias, own in self.aliases.items()}


@contextmanager
def opened(source: "CompressedModel | str | Path") -> Iterator[Source]:
    """What is exported, while the block lasts. Raises BadInput, CorruptFile, NewerFormat, OSError."""
    if isinstance(source, CompressedModel):
        entries, texts = source.entries, source.notes.get("metadata", {})
        layouts = {name: entry.layout for name, entry in entries.items()}
        yield Source(layouts, source.aliases, lambda name: entries[name], source.notes, metadata=texts)
        return
    path, folder = Path(source), None
    if path.is_dir():
        from waterfill.hf.folder import WEIGHTS, check_compressed

        folder = check_compressed(path)
        path = folder / WEIGHTS
    with FileReader(path) as src:
        tensors = CompressedTensors(src)
        notes, texts = tensors.manifest.notes, tensors.metadata
        yield Source(tensors.layouts, tensors.aliases, tensors.entry, notes, folder, texts)
