"""The interface of a way of writing a matrix of codes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from waterfill.coding.chunking import rows_per_chunk
from waterfill.coding.stream import Reader, Sink

_MOST_CODES = 4096  # a wider range of codes is no histogram any more


@dataclass(frozen=True)
class Frame:
    """Known to a reader from the context: rows, cols, kernel (spatial extent, or ()), and lanes of the rANS stream."""

    rows: int
    cols: int
    kernel: tuple[int, ...]
    lanes: int


@dataclass(frozen=True, eq=False)
class Frequencies:
    """How often codes occur, and how often the coder expects them to: found and expected [n] (float64), of the codes
    from `low` on. Where expected codes lie beyond these or are escaped, expected sums to less."""

    low: int
    found: np.ndarray
    expected: np.ndarray

    def add(self, codes: np.ndarray, masses: np.ndarray) -> None:
        """Expect these codes so much more often; both [n]."""
        inside = (codes >= self.low) & (codes < self.low + len(self.expected))
        np.add.at(self.expected, codes[inside] - self.low, masses[inside])


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

    @final
    def frequencies(self) -> Frequencies | None:
        """Of the codes in the first chunk of rows; None where they are too far apart for a picture."""
        rows = slice(0, min(self.codes.shape[0], rows_per_chunk(max(1, self.codes.shape[1]))))
        codes = self.codes[rows].astype(np.int64).ravel()
        if not codes.size or codes.max() - codes.min() >= _MOST_CODES:
            return None
        found = np.bincount(codes - codes.min()).astype(np.float64)
        frequencies = Frequencies(int(codes.min()), found, np.zeros_like(found))
        self.expect(rows, frequencies)
        return frequencies

    @abstractmethod
    def expect(self, rows: slice, into: Frequencies) -> None:
        """Add how often the coder expects each code in a chunk of rows."""

    @abstractmethod
    def content(self, out: Sink) -> None:
        """Write everything but mode and lanes."""

    @staticmethod
    @abstractmethod
    def read(src: Reader, frame: Frame) -> np.ndarray:
        """The codes [rows, cols] that `content` wrote, at least one of them. Raises CorruptFile."""
