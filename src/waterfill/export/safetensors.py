"""Tensors of a .wf file one at a time, and a .safetensors file written that way."""

import json
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from waterfill.errors import BadInput
from waterfill.model.lazy import CompressedTensors
from waterfill.storage.atomic import AtomicFile

_NAMES = {  # how safetensors names the types
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


@dataclass(frozen=True)
class Slot:
    """Where a tensor goes: its name, shape and dtype in the output, and the name that holds its data in the source."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: str

    @property
    def bytes(self) -> int:
        """Bytes of the tensor."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def slots_of(tensors: CompressedTensors, dtype: torch.dtype | None = None) -> list[Slot]:
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
    if `path` is taken (without `force`) or no regular file, BadInput for a type that the format lacks; a full disk
    passes through.
    """

    def __init__(self, path: str, slots: list[Slot], force: bool = False) -> None:
        self._out = AtomicFile(path, force=force)
        self._header = _header(slots)

    def __enter__(self) -> Self:
        self._out.__enter__()
        self._out.file.write(self._header)
        return self

    def add(self, tensor: Tensor) -> None:
        """Append the data of the next slot."""
        self._out.file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def finish(self) -> int:
        """Put the file in its place and return its size in bytes."""
        return self._out.finish()

    def __exit__(self, *_: object) -> None:
        self._out.__exit__()


def _header(slots: list[Slot]) -> bytes:
    """Length, then JSON padded to a multiple of eight bytes, so that the data, widest types first, is aligned."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for slot in slots:
        if slot.dtype not in _NAMES:
            raise BadInput(f"tensor {slot.name!r} is {slot.dtype}, which .safetensors cannot hold")
        offsets = [at, at + slot.bytes]
        entries[slot.name] = {"dtype": _NAMES[slot.dtype], "shape": list(slot.shape), "data_offsets": offsets}
        at += slot.bytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
