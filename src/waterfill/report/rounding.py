"""What it costs to round a weight to nearest: the measure of how sensitive it is, and of plain rounding as an opponent.

Codes of b bits and a float16 scale for each group of 128 columns of a row, as most tools without data do; each scale is
the best of a few clipping ranges.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from waterfill.importance import Importance
from waterfill.parts import Quantize

BITS = (2, 3, 4, 8)
"""The numbers of bits that sensitivity is told for, unless others are asked for."""
GROUP = 128
"""Columns that share a scale."""
_SCALE_BITS = 16
_MOST_ENTRIES = 1 << 17  # of a matrix; of larger ones some rows stand for all


@dataclass(frozen=True)
class Rounded:
    """A weight alone rounded to so many bits. spent: bits of its codes and scales. nats: the predicted cost."""

    spent: float
    nats: float


def rounded_matrix(target: Tensor, bits: int) -> Tensor:
    """A matrix [rows, cols] (float32) rounded to nearest."""
    return Quantize(bits=bits, group=min(GROUP, target.shape[1])).fit(target, Importance(), 1.0).dense()


def spent_on(rows: int, cols: int, bits: int) -> float:
    """Bits of the codes and scales of a matrix."""
    return float(rows * (cols * bits + _SCALE_BITS * -(-cols // GROUP)))


def rounded(matrices: Iterable[tuple[Tensor, Importance]], bits: Sequence[int] = BITS) -> dict[int, Rounded]:
    """By the number of bits, what rounding a weight costs, given its matrices and what errors in each cost; of a large
    matrix as its rows cost that were looked at."""
    found = {b: Rounded(0.0, 0.0) for b in bits}
    for target, importance in matrices:
        rows, scale = _some_rows(target)
        seen, own = target[rows].contiguous(), importance.select_rows(rows)
        for b in bits:
            nats = scale * own.distortion(seen - rounded_matrix(seen, b))
            found[b] = Rounded(found[b].spent + spent_on(target.shape[0], target.shape[1], b), found[b].nats + nats)
    return found


def _some_rows(target: Tensor) -> tuple[Tensor, float]:
    """Evenly spaced rows, and for how many each stands."""
    rows = len(target)
    step = max(1, rows * target.shape[1] // _MOST_ENTRIES)
    chosen = torch.arange(0, rows, min(step, rows), dtype=torch.int64, device="cpu")
    return chosen, rows / len(chosen)
