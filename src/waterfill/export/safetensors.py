"""Tensors of a .wf file one at a time, and a .safetensors file written that way."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from waterfill.dtypes import octets
from waterfill.errors import BadInput
from waterfill.model.lazy import CompressedTensors
from waterfill.network.stored import DTYPES, IMPLIED, METADATA, PACKED
from waterfill.storage.atomic import AtomicFile

if TYPE_CHECKING:
    from waterfill.export.source import Source

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Slot:
    """A tensor of the output: its name, shape and dtype, and the name that holds its data in the source."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: str

    @property
    def bytes(self) -> int:
        """Bytes of the tensor."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def slots_of(tensors: "CompressedTensors | Source", dtype: torch.dtype | None = None) -> list[Slot]:
    """A slot for every tensor of a file, those with the largest entries first; floating-point ones as `dtype`, if that
    is given."""
    sources = {name: name for name in tensors.layouts} | dict(tensors.aliases)
    slots = []
    for name, source in sources.items():
        layout = tensors.layouts[source]
        kept = layout.dtype if dtype is None or not layout.dtype.is_floating_point else dtype
        slots.append(Slot(name, layout.shape, kept, source))
    return sorted(slots, key=lambda slot: (-slot.dtype.itemsize, slot.name))


class SafetensorsWriter:
    """Writes a .safetensors file tensor by tensor, beside its target, which it replaces when it is whole.

    Use it in a `with` block: leaving the block before `finish` has returned leaves no file behind. Raises OutputExists
    if `path` is taken (without `force`) or no regular file, BadInput for a type or a name that the format
    lacks; a full disk passes through. metadata: texts for its header.
    """

    def __init__(
        self, path: str, slots: list[Slot], force: bool = False, metadata: Mapping[str, str] | None = None
    ) -> None:
        self._out = AtomicFile(path, force=force)
        self._header = _header(slots, metadata or {})

    def __enter__(self) -> Self:
        self._out.__enter__()
        self._out.file.write(self._header)
        return self

    def add(self, tensor: Tensor) -> None:
        """Append the data of the next slot."""
        self._out.file.write(octets(tensor).numpy().data)

    def finish(self) -> int:
        """Put the file in its place and return its size in bytes."""
        return self._out.finish()

    def __exit__(self, *_: object) -> None:
        self._out.__exit__()


def _header(slots: list[Slot], metadata: Mapping[str, str]) -> bytes:
    """Length, then JSON padded to a multiple of eight bytes, so that the data, widest types first, is aligned."""
    entries: dict[str, object] = {METADATA: dict(IMPLIED) | dict(metadata)}
    at = 0
    for slot in slots:
        if slot.name == METADATA:
            raise BadInput(f"tensor {METADATA!r} has the name that .safetensors needs for itself; rename it")
        if slot.dtype not in _NAMES:
            raise BadInput(f"tensor {slot.name!r} is {slot.dtype}, which .safetensors cannot hold")
        offsets = [at, at + slot.bytes]
        shape = list(slot.shape)
        if slot.dtype in PACKED and shape:
            shape[-1] *= PACKED[slot.dtype]
        entries[slot.name] = {"dtype": _NAMES[slot.dtype], "shape": shape, "data_offsets": offsets}
        at += slot.bytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
