"""A sample of one tensor: evenly spaced rows and channels of some of its matrices, and their importance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from waterfill.importance import Importance

SAMPLED_ENTRIES = 1 << 16
"""About how many entries of a weight are sampled to measure its curve."""
_SAMPLED_MATRICES = 4
_FEWEST_ROWS = _FEWEST_CHANNELS = 64


@dataclass(frozen=True, eq=False)
class Sample:
    """A sample. rows, cols: indices in each matrix, None for all of them. targets: [rows, cols] of each sampled matrix.
    importances: () -> the importance of each."""

    rows: Tensor | None
    cols: Tensor | None
    targets: Sequence[Tensor]
    importances: Callable[[], Sequence[Importance]]

    @property
    def entries(self) -> int:
        """Entries of all targets."""
        return sum(target.numel() for target in self.targets)


def stride_of(matrices: int) -> int:
    """The step between sampled matrices of a tensor."""
    return max(1, matrices // _SAMPLED_MATRICES)


def rows_and_cols(shape: tuple[int, int], positions: int, entries: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Indices of rows and columns for a sample of about so many entries; None for a matrix that is no larger.

    Columns are taken in whole channels of `positions` each.
    """
    rows, channels = shape[0], max(1, shape[1] // max(1, positions))
    width = max(1, shape[1] // channels)
    keep_rows = min(rows, max(_FEWEST_ROWS, entries // max(1, shape[1])))
    keep_channels = min(channels, max(_FEWEST_CHANNELS, entries // max(1, keep_rows * width)))
    if (keep_rows, keep_channels * width) == shape:
        return None, None
    row = _indices(rows, max(1, rows // keep_rows))[:keep_rows]
    channel = _indices(channels, max(1, channels // keep_channels))[:keep_channels]
    return row, (channel[:, None] * width + _indices(width)).reshape(-1)


def _indices(count: int, step: int = 1) -> Tensor:
    return torch.arange(0, count, step, dtype=torch.int64, device="cpu")
