"""Patterns of sparsity: the units in which entries are kept, and masks of the kept ones.

A pattern lays a grid of units over a matrix [rows, cols]; a mask says which units are kept; the kept entries form a
smaller matrix, the values.
"""

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from waterfill.coding.codes import matrix as coded
from waterfill.coding.stream import Reader, Sink, Tally

MOST_GAPS = 4096
MOST_CHOICES = 255


class Pattern(Protocol):
    """The interface of `Blocks` and `Groups`. Masks are bool tensors, one entry per unit."""

    def gather(self, matrix: Tensor, mask: Tensor) -> Tensor:
        """The values [v, u] of the kept units of `matrix` [rows, cols]."""

    def scatter(self, values: Tensor, mask: Tensor, shape: tuple[int, int]) -> Tensor:
        """The matrix [rows, cols] with these values, zero elsewhere."""

    def values_shape(self, mask: Tensor, shape: tuple[int, int]) -> tuple[int, int]:
        """The shape of `gather`."""

    def plan(self, mask: Tensor) -> coded.Plan:
        """The plan by which the mask is coded."""

    def write(self, mask: Tensor, plan: coded.Plan, out: Sink) -> None:
        """Pattern and mask; `plan` is that of the mask."""


def largest(gain: Tensor, count: int) -> Tensor:
    """The mask of the `count` largest of gain, the earlier of equal ones."""
    if count == 0:
        return torch.zeros(gain.shape, dtype=torch.bool, device="cpu")
    flat = gain.reshape(-1)
    threshold = torch.kthvalue(flat, len(flat) - count + 1).values
    mask = flat > threshold
    ties = torch.nonzero(flat == threshold)[: count - int(mask.sum()), 0]
    mask[ties] = True
    return mask.reshape(gain.shape)


@dataclass(frozen=True)
class Blocks:
    """Blocks of height x width entries; 1 x 1 are single entries, 1 x cols rows, rows x 1 columns.

    Values have a kept block per row, in reading order; blocks one column wide are kept as columns instead, so that
    single entries are one row [1, kept] and columns stay columns [rows, kept].
    """

    height: int
    width: int

    @property
    def size(self) -> int:
        """Entries of a unit."""
        return self.height * self.width

    def grid(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of units; the last ones may stick out of the matrix."""
        return -(-shape[0] // self.height), -(-shape[1] // self.width)

    def folded(self, matrix: Tensor) -> Tensor:
        """[grid rows, grid cols, height, width], zero where blocks stick out."""
        tall, wide = self.grid((matrix.shape[0], matrix.shape[1]))
        padding = (0, wide * self.width - matrix.shape[1], 0, tall * self.height - matrix.shape[0])
        padded = F.pad(matrix, padding) if any(padding) else matrix
        return padded.reshape(tall, self.height, wide, self.width).permute(0, 2, 1, 3)

    def gather(self, matrix: Tensor, mask: Tensor) -> Tensor:
        values = self.folded(matrix)[mask].reshape(-1, self.size)
        return values.T if self.width == 1 else values

    def scatter(self, values: Tensor, mask: Tensor, shape: tuple[int, int]) -> Tensor:
        tall, wide = mask.shape
        folded = torch.zeros(tall, wide, self.height, self.width, dtype=values.dtype, device="cpu")
        folded[mask] = (values.T if self.width == 1 else values).reshape(-1, self.height, self.width)
        unfolded = folded.permute(0, 2, 1, 3).reshape(tall * self.height, wide * self.width)
        return unfolded[: shape[0], : shape[1]].contiguous()

    def values_shape(self, mask: Tensor, shape: tuple[int, int]) -> tuple[int, int]:
        kept = int(mask.sum())
        return (self.size, kept) if self.width == 1 else (kept, self.size)

    def plan(self, mask: Tensor) -> coded.Plan:
        return coded.plan(mask.numpy().astype(np.int8))

    def write(self, mask: Tensor, plan: coded.Plan, out: Sink) -> None:
        out.uint(self.height)
        out.uint(self.width)
        kept = np.flatnonzero(mask.numpy())
        gaps = np.diff(kept, prepend=-1) - 1
        if len(kept) <= MOST_GAPS and _bits_of_gaps(gaps) <= plan.bits:
            out.uint(1 + len(kept))
            out.ints(gaps)
            out.claim(mask.numel())
        else:
            out.uint(0)
            out.put(plan)

    @classmethod
    def read(cls, src: Reader, height: int, shape: tuple[int, int]) -> tuple[Self, Tensor]:
        """What `write` wrote, after the height. Raises CorruptFile."""
        blocks = cls(height, src.uint(shape[1]))
        if blocks.width < 1:
            raise src.fail("a block without entries")
        tall, wide = blocks.grid(shape)
        head = src.uint(1 + MOST_GAPS)
        if head == 0:
            return blocks, _as_mask(src, coded.read(src, tall, wide))
        positions = src.ints(head - 1)
        units = src.claim(tall * wide)
        if len(positions) and (positions.min() < 0 or positions.max() >= units):
            raise src.fail("a gap between kept entries is longer than the matrix")
        positions = np.cumsum(positions + 1) - 1
        if len(positions) and positions[-1] >= units:
            raise src.fail("a kept entry lies outside of the matrix")
        mask = np.zeros(units, dtype=bool)
        mask[positions] = True
        return blocks, torch.from_numpy(mask.reshape(tall, wide))


def _bits_of_gaps(gaps: np.ndarray) -> float:
    tally = Tally()
    tally.ints(gaps)
    return tally.bits


def _as_mask(src: Reader, codes: np.ndarray) -> Tensor:
    if codes.size and (codes.min() < 0 or codes.max() > 1):
        raise src.fail("a mask holds something else than zeros and ones")
    return torch.from_numpy(codes.astype(bool))


@dataclass(frozen=True)
class Groups:
    """`kept` of every `size` neighbors in a row (N:M); a last, shorter group keeps as many, or all it has.

    The mask is [rows, cols]; values are [rows, kept per row]. Positions are coded as the number of the combination in
    lexicographic order.
    """

    kept: int
    size: int

    @property
    def choices(self) -> np.ndarray:
        """All combinations as masks [C(size, kept), size] (bool)."""
        places = np.array(list(combinations(range(self.size), self.kept)))
        masks = np.zeros((len(places), self.size), dtype=bool)
        np.put_along_axis(masks, places, True, axis=1)
        return masks

    def select(self, gain: Tensor) -> Tensor:
        """The mask [rows, cols] of the largest `kept` of each group of gain [rows, cols]; the earlier of equal ones."""
        rows, cols = gain.shape
        groups = F.pad(gain, (0, -cols % self.size), value=-1.0).reshape(rows, -1, self.size)
        order = groups.argsort(dim=2, descending=True, stable=True)[:, :, : self.kept]
        none = torch.zeros(groups.shape, dtype=torch.bool, device="cpu")
        return none.scatter_(2, order, True).reshape(rows, -1)[:, :cols]

    def gather(self, matrix: Tensor, mask: Tensor) -> Tensor:
        return matrix[mask].reshape(self.values_shape(mask, (matrix.shape[0], matrix.shape[1])))

    def scatter(self, values: Tensor, mask: Tensor, shape: tuple[int, int]) -> Tensor:
        return torch.zeros(shape, dtype=values.dtype, device="cpu").masked_scatter_(mask, values)

    def values_shape(self, mask: Tensor, shape: tuple[int, int]) -> tuple[int, int]:
        full, rest = divmod(shape[1], self.size)
        return shape[0], full * self.kept + min(rest, self.kept)

    def plan(self, mask: Tensor) -> coded.Plan:
        rows, cols = mask.shape
        groups = np.pad(mask.numpy(), ((0, 0), (0, -cols % self.size))).reshape(rows, -1, self.size)
        # A shorter group keeps all it has; first places of its padding stand in for what it lacks.
        lacking = self.kept - groups.sum(2, keepdims=True)
        padding = np.arange(self.size) >= cols - self.size * np.arange(groups.shape[1])[:, None]
        groups = groups | (padding & (np.cumsum(padding, axis=1) <= lacking))
        place = 1 << np.arange(self.size)
        numbers = np.zeros(1 << self.size, dtype=np.int64)
        numbers[self.choices @ place] = np.arange(len(self.choices))
        return coded.plan(numbers[groups @ place] - len(self.choices) // 2)

    def write(self, mask: Tensor, plan: coded.Plan, out: Sink) -> None:
        out.uint(0)
        out.uint(self.kept)
        out.uint(self.size)
        out.put(plan)
        out.claim(mask.numel())

    @classmethod
    def read(cls, src: Reader, shape: tuple[int, int]) -> tuple[Self, Tensor]:
        """What `write` wrote, after the zero in the place of a height. Raises CorruptFile."""
        groups = cls(src.uint(16), src.uint(16))
        if not (0 < groups.kept < groups.size and math.comb(groups.size, groups.kept) <= MOST_CHOICES):
            raise src.fail(f"a pattern of {groups.kept} in {groups.size}")
        choices = groups.choices
        numbers = coded.read(src, shape[0], -(-shape[1] // groups.size)).astype(np.int64) + len(choices) // 2
        src.claim(shape[0] * shape[1])
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(choices)):
            raise src.fail("the number of a combination is out of range")
        mask = choices[numbers].reshape(shape[0], -1)[:, : shape[1]]
        if (mask.sum(1) != groups.values_shape(torch.from_numpy(mask), shape)[1]).any():
            raise src.fail("a group keeps fewer entries than it has")
        return groups, torch.from_numpy(mask.copy())


def read_pattern(src: Reader, shape: tuple[int, int]) -> tuple[Pattern, Tensor]:
    """The pattern and the mask that `write` wrote. Raises CorruptFile."""
    height = src.uint(shape[0])
    return Blocks.read(src, height, shape) if height else Groups.read(src, shape)
