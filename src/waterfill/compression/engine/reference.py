"""Tensors of a checkpoint as references: their file, and their place in it."""

import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from waterfill.compression.allocation.weight import Weight
from waterfill.dtypes import dtype_name, dtype_of
from waterfill.errors import EngineError
from waterfill.network.kept import BINARY
from waterfill.network.layout import RAW, layout_of
from waterfill.network.stored import Stored
from waterfill.part import Spec
from waterfill.parts import Dense

LOSSLESS_SPEC = Dense(format="lossless")
"""What tensors are fitted to that have no other spec."""


@dataclass(frozen=True)
class Reference:
    """A tensor in a file, as JSON values: absolute path and bytes of the file, name, type, shape and first byte."""

    file: str
    file_bytes: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    start_at: int

    @property
    def entries(self) -> int:
        """Entries of the tensor."""
        return math.prod(self.shape)

    @classmethod
    def of(cls, stored: Stored) -> "Reference":
        """The reference of a tensor in a file that is there."""
        file = os.path.abspath(stored.file)
        dtype = dtype_name(stored.dtype)
        return cls(file, os.stat(file).st_size, stored.name, dtype, stored.shape, stored.start_at)

    @classmethod
    def from_json(cls, values: list[Any]) -> "Reference":
        """The inverse of `as_json`."""
        file, file_bytes, name, dtype, shape, start_at = values
        return cls(file, file_bytes, name, dtype, tuple(shape), start_at)

    def as_json(self) -> list[Any]:
        """A JSON array."""
        return list(vars(self).values())

    def stored(self) -> Stored:
        """The tensor on the machine where this runs. Raises EngineError where its file is not to be seen."""
        path = Path(self.file)
        try:
            found = path.stat().st_size
        except OSError as error:
            raise EngineError(
                f"{path} is not to be seen there ({error.strerror}); mount its folder at this place on every machine"
            ) from error
        if found != self.file_bytes:
            raise EngineError(f"{path} has {found} bytes there, and {self.file_bytes} where the job was begun")
        return Stored(self.name, path, self.shape, dtype_of(self.dtype), self.start_at)


def weight_of(stored: Stored, spec: Spec | None, kept: str, mask: "Stored | None" = None) -> Weight:
    """The weight of a tensor in a file; without a spec it is kept bit for bit.

    kept: why it is kept though it could be rounded, or "". mask: of a pruned one; not zero where it is used.
    """
    layout = layout_of(stored.shape, stored.dtype, RAW if spec is None or kept not in ("", BINARY) else None)
    hidden = None if mask is None or kept else partial(_used, mask)
    return Weight(stored.name, layout, spec or LOSSLESS_SPEC, stored.load, kept=kept, mask=hidden)


def _used(mask: Stored) -> Tensor:
    return mask.load() != 0
