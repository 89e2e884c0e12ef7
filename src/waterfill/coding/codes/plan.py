"""The interface of a way of writing a matrix of codes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from waterfill.coding.stream import Reader, Sink


@dataclass(frozen=True)
class Frame:
    """Known to a reader from the context: rows, cols, kernel (spatial extent, or ()), and lanes of the rANS stream."""

    rows: int
    cols: int
    kernel: tuple[int, ...]
    lanes: int


@dataclass(frozen=True, eq=False)
class Plan(ABC):
    """The coding of a matrix of codes [rows, cols]: its bits, and its lanes of rANS (or 1)."""

    codes: np.ndarray
    bits: float
    lanes: int
    mode: ClassVar[int]

    @property
    def entries(self) -> int:
        """How many codes there are."""
        return self.codes.size

    @final
    def write(self, out: Sink) -> None:
        """Mode and lanes, then `content`; rows, columns and kernel the reader knows from the part that holds them."""
        out.uint(self.mode | (self.lanes.bit_length() - 1) << 3)
        self.content(out)

    @abstractmethod
    def content(self, out: Sink) -> None:
        """Write everything but mode and lanes."""

    @staticmethod
    @abstractmethod
    def read(src: Reader, frame: Frame) -> np.ndarray:
        """The codes [rows, cols] that `content` wrote, at least one of them. Raises CorruptFile."""
