"""What a way of writing a matrix of codes is asked for."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from waterfill.coding.stream import Reader, Sink


@dataclass(frozen=True)
class Frame:
    """What a reader is told from outside: rows, cols, kernel (spatial extent, or ()), and lanes of the rANS stream."""

    rows: int
    cols: int
    kernel: tuple[int, ...]
    lanes: int


@dataclass(frozen=True, eq=False)
class Plan(ABC):
    """How a matrix of codes [rows, cols] will be written, in how many bits, and with how many lanes of rANS (or 1)."""

    codes: np.ndarray
    bits: float
    lanes: int
    mode: ClassVar[int]

    @property
    def entries(self) -> int:
        """How many codes there are."""
        return self.codes.size

    @abstractmethod
    def write(self, out: "Sink") -> None:
        """Everything but mode and lanes."""

    @staticmethod
    @abstractmethod
    def read(src: "Reader", frame: Frame) -> np.ndarray:
        """The codes [rows, cols] that `write` wrote, at least one of them. Raises CorruptFile."""
