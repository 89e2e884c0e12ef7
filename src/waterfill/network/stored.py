"""The tensors of one `.safetensors` file: its header, read once, and each tensor where it lies."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from waterfill.errors import BadInput, CorruptFile

_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}
DTYPES: dict[str, torch.dtype] = {said: getattr(torch, name) for said, name in _NAMES.items() if hasattr(torch, name)}
"""Number types as `.safetensors` names them; older releases of PyTorch lack the last ones."""
PACKED = {DTYPES[name]: 2 for name in ("F4",) if name in DTYPES}
"""Types of which PyTorch counts so many of the file's entries as one, along the last dimension."""
METADATA = "__metadata__"
"""The key of a header under which it holds texts."""
IMPLIED = (("format", "pt"),)
"""Texts that every file of PyTorch tensors has; not stored, and written again on decompression."""

_LENGTH = 8  # bytes, before the header
_KNOWN = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; fetch that with: git lfs pull"),
    (b"PK\x03\x04", "a zip archive, as torch.save writes it; {pickled}"),
    (b"\x80\x02", "a pickle, as old versions of torch.save wrote it; {pickled}"),
    (b"GGUF", "a GGUF file; give the checkpoint that it was made of"),
    (b"\x89WF\n", "a file of waterfill already; restore it with: waterfill decompress"),
    (b"\x89HDF", "an HDF5 file; load its tensors and save them with safetensors.torch.save_file"),
    (b"\x93NUMPY", "an array of numpy; save it with safetensors.numpy.save_file"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
)
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head")
_PICKLED = "load it with torch.load(path, weights_only=True) and save the tensors with safetensors.torch.save_file"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, as the header describes it. start_at: its first byte in the file."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    start_at: int

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize

    def load(self) -> Tensor:
        """The tensor, mapped from its file copy-on-write; the mapping ends with the tensor."""
        if not self.size:
            return torch.empty(self.shape, dtype=self.dtype, device="cpu")
        try:
            raw = torch.from_numpy(np.memmap(self.file, np.uint8, "c", self.start_at, (self.size,)))
        except (OSError, ValueError) as error:
            raise CorruptFile(f"{self.file}: tensor {self.name!r} cannot be read: {error}") from error
        if raw.data_ptr() % self.dtype.itemsize:
            raw = raw.clone()
        return raw.view(self.dtype).reshape(self.shape)

    def start(self, count: int) -> bytes:
        """Its first bytes, at most so many."""
        try:
            with self.file.open("rb") as file:
                file.seek(self.start_at)
                return file.read(min(count, self.size))
        except OSError as error:
            raise CorruptFile(f"{self.file}: tensor {self.name!r} cannot be read: {error}") from error


def read_header(file: Path) -> tuple[list[Stored], dict[str, str]]:
    """The tensors of a file in the order of their names, and its metadata.

    Raises CorruptFile for any other file, naming its format where its first bytes show it, BadInput for an unknown
    number type.
    """
    try:
        with safe_open(file, framework="pt"):
            pass  # the header is whole, and its offsets fit the file
        with file.open("rb") as src:
            length = int.from_bytes(src.read(_LENGTH), "little")
            header: dict[str, Any] = json.loads(src.read(length))
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise CorruptFile(f"{file} is not a readable .safetensors file: {_kind(file) or error}") from error
    metadata = header.pop(METADATA, None) or {}
    data = _LENGTH + length
    return [_stored(name, file, header[name], data) for name in sorted(header)], metadata


def _stored(name: str, file: Path, header: dict[str, Any], data: int) -> Stored:
    dtype, shape = DTYPES.get(header["dtype"]), tuple(header["shape"])
    if dtype is None:
        raise BadInput(f"tensor {name!r} of {file} is of type {header['dtype']}, which PyTorch lacks; leave it out")
    each = PACKED.get(dtype, 1)
    if each > 1:
        shape = (*shape[:-1], shape[-1] // each)
    return Stored(name, file, shape, dtype, data + header["data_offsets"][0])


def _kind(file: Path) -> str | None:
    """The format of a file by its first bytes, and advice; None where they do not show it."""
    try:
        with file.open("rb") as src:
            first = src.read(64)
    except OSError:
        return None
    if not first:
        return "it is empty; fetch it again"
    if first.lstrip().lower().startswith(_PAGES):
        return "it is a web page: the download went wrong, maybe for want of a login; fetch it again"
    known = next((what for magic, what in _KNOWN if first.startswith(magic)), None)
    return None if known is None else f"it is {known.format(pickled=_PICKLED)}"
