"""Tensors of a .wf file one at a time, and a .safetensors file written that way."""

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from waterfill.dtypes import octets
from waterfill.errors import BadInput, OutputExists
from waterfill.network.stored import DTYPES, IMPLIED, METADATA, PACKED

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


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


class SafetensorsWriter:
    """Writes a .safetensors file tensor by tensor, beside its target, which it replaces when it is whole.

    Use it in a `with` block: leaving the block before `finish` has returned leaves no file behind. Raises OutputExists
    if `path` is taken (without `force`), BadInput for a type or a name that the format lacks; a full disk passes
    through. metadata: texts for its header.
    """

    def __init__(
        self, path: str, slots: list[Slot], force: bool = False, metadata: Mapping[str, str] | None = None
    ) -> None:
        self._path, self._force = Path(os.path.realpath(path)), force
        self._temporary = self._path.with_name(f".waterfill-{secrets.token_hex(8)}.tmp")
        self._header = _header(slots, metadata or {})
        self._refuse_taken()
        if not self._path.parent.is_dir():
            raise BadInput(f"the folder {self._path.parent} does not exist; create it or choose another output")

    def __enter__(self) -> Self:
        self._file = open(self._temporary, "xb")
        self._file.write(self._header)
        return self

    def add(self, tensor: Tensor) -> None:
        """Append the data of the next slot."""
        self._file.write(octets(tensor).numpy().data)

    def finish(self) -> int:
        """Put the file in its place and return its size in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        self._refuse_taken()
        os.replace(self._temporary, self._path)
        return size

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # on a full disk closing fails once more; the first error is the one to show
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _refuse_taken(self) -> None:
        if self._path.is_dir():
            raise OutputExists(f"{self._path} is a folder; name a file in it with -o")
        if self._path.exists() and not self._force:
            raise OutputExists(f"{self._path} exists; choose another output with -o, or overwrite it with --force")


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
