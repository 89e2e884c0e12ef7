"""Hidden states between blocks, for every batch: in memory up to a limit, beyond it in files of a folder."""

import errno
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from waterfill.dtypes import dtype_name, dtype_of, octets
from waterfill.errors import CorruptFile

_HEADER = 4  # bytes of the length of a header


class HiddenStates:
    """Tensors by name. folder: None keeps all of them in memory. memory: bytes of them that are; 0 keeps every one in
    the folder, so that another process can go on with it.

    Raises OSError, saying what to do, where the disk is full; the file that was begun is removed.
    """

    def __init__(self, folder: Path | None, memory: int) -> None:
        self._folder = folder
        self._memory = memory
        self._kept: dict[str, Tensor] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob("*.tmp"):
                left.unlink()

    def put(self, name: str, value: Tensor) -> None:
        """Keep a tensor in the place of an earlier one of that name."""
        value = value.detach().cpu()
        held = sum(tensor.nbytes for key, tensor in self._kept.items() if key != name)
        if self._folder is None or held + value.nbytes <= self._memory:
            self._kept[name] = value.clone()
            return
        self._kept.pop(name, None)
        self._write(self._folder / f"{name}.state", value.contiguous())

    def get(self, name: str) -> Tensor:
        """A tensor, which may be written to. Raises CorruptFile where its file is damaged."""
        if name in self._kept:
            return self._kept[name].clone()
        assert self._folder is not None
        return _read(self._folder / f"{name}.state")

    def __contains__(self, name: str) -> bool:
        return name in self._kept or (self._folder is not None and (self._folder / f"{name}.state").exists())

    def drop(self, prefix: str) -> None:
        """Forget the tensors whose names begin with `prefix`."""
        for name in [name for name in self._kept if name.startswith(prefix)]:
            del self._kept[name]
        for path in () if self._folder is None else list(self._folder.glob(f"{prefix}*.state")):
            path.unlink()

    def _write(self, path: Path, value: Tensor) -> None:
        data = octets(value).numpy().data
        about = {"dtype": dtype_name(value.dtype), "shape": list(value.shape), "crc": zlib.crc32(data)}
        header = json.dumps(about).encode()
        temporary = path.with_suffix(".tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(len(header).to_bytes(_HEADER, "little") + header)
                file.write(data)
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if error.errno != errno.ENOSPC:
                raise
            raise OSError(
                errno.ENOSPC,
                f"no room on the disk for the hidden states of the inputs ({value.nbytes} bytes more); give fewer "
                "inputs, or a work directory elsewhere",
                str(path.parent),
            ) from error


def _read(path: Path) -> Tensor:
    try:
        with open(path, "rb") as file:
            about: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(_HEADER), "little")))
            data = np.fromfile(file, np.uint8)
        if zlib.crc32(data.data) != about["crc"]:
            raise ValueError("its checksum differs")
        return torch.from_numpy(data).view(dtype_of(about["dtype"])).reshape(about["shape"])
    except (ValueError, KeyError) as error:
        raise CorruptFile(
            f"{path}: hidden states are damaged ({error}); delete the work directory to begin anew"
        ) from error
