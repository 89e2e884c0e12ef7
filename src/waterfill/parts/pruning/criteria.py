"""The cost of pruning an entry: by its magnitude, by its inputs, or after the others compensate for it.

The last is that of Optimal Brain Surgeon, w^2 / [A^-1]_ii, in one sweep over the columns as in SparseGPT (arXiv
2301.00774): with A^-1 = U^T U, U upper triangular, U_ii^2 is the diagonal entry of the inverse over the columns from i
on, so w_i^2 / U_ii^2 is the least increase of the error if column i is pruned, those before it are fixed, and those
after it are free. A block of several columns has |w_B U_BB^-1|^2, exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from waterfill.importance import Importance
from waterfill.parts.pruning.patterns import Blocks, Groups

AUTO, MAGNITUDE, ACTIVATION, HESSIAN = CRITERIA = ("auto", "magnitude", "activation", "hessian")
_BLOCK = 128  # columns after which the errors are propagated to the others (lazy updates, as in GPTQ)
_STEPS = 64  # in which all columns are eliminated
_ROUNDS = 4  # of sweeps for the threshold that keeps a given share


def static(target: Tensor, importance: Importance, criterion: str) -> Tensor:
    """The gain in distortion of keeping each entry, [rows, cols], if errors do not correlate.

    By magnitude every weight of the importance is replaced by its mean.
    """
    rows, cols = target.shape
    if criterion != MAGNITUDE:
        return 0.5 * target.square() * importance.entry_weights(rows, cols)
    mean = float(importance.row_weights(rows).mean()) * float(importance.column_weights(cols).mean())
    return 0.5 * mean * target.square()


def within_rows(gain: Tensor) -> Tensor:
    """Scores that order gains [rows, units] by their rank in their own row first, then by their size."""
    place = gain.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    order = gain.reshape(-1).argsort(stable=True).argsort().reshape(gain.shape)
    return (gain.shape[1] - 1 - place).double() + order.double() / max(1, gain.numel())


@dataclass(frozen=True, eq=False)
class ObsSweep:
    """Sweeps over the columns of one target [rows, cols] (float32)."""

    target: Tensor
    importance: Importance

    @cached_property
    def factor(self) -> Tensor:
        """U [cols, cols], upper triangular, with (A + damping)^-1 = U^T U (float32)."""
        lower, cols = self.importance.lower, self.target.shape[1]
        if lower is None:
            weights = self.importance.column_weights(cols)
            least = 1e-9 * float(weights.mean()) or 1.0
            return torch.diag(weights.clamp_min(least).rsqrt())
        eye = torch.eye(len(lower), dtype=torch.float64, device="cpu")
        inverse = torch.linalg.solve_triangular(torch.from_numpy(lower).double(), eye, upper=False)
        return torch.block_diag(*[inverse.T.float()] * (cols // len(lower)))

    @cached_property
    def rows(self) -> Tensor:
        """Half the output weights, [rows]."""
        return 0.5 * self.importance.row_weights(self.target.shape[0])

    def blocks(self, units: Blocks, threshold: float) -> tuple[Tensor, Tensor]:
        """The gain of each unit when the sweep reaches it, and whether it is above the threshold."""
        tall, wide = units.grid((self.target.shape[0], self.target.shape[1]))
        gains = torch.zeros(tall, wide, dtype=torch.float32, device="cpu")
        fill = tall * units.height - len(self.rows)

        def drop(start: int, errors: Tensor, _weights: Tensor) -> Tensor:
            by_row = torch.nn.functional.pad(errors.square().sum(1) * self.rows, (0, fill))
            gain = by_row.reshape(tall, units.height).sum(1)
            gains[:, start // units.width] = gain
            return (gain <= threshold).repeat_interleave(units.height)[: len(errors), None]

        self._sweep(units.width, drop)
        return gains, gains > threshold

    def columns(self) -> Tensor:
        """The cost of pruning each column from all rows when its turn comes, [cols], rising in order of elimination.

        The columns of least cost are pruned first, a few at a time; after each step the others compensate, and the
        inverse is updated to the columns that are left.
        """
        H = (self.factor.T @ self.factor).double()
        W, rows = self.target.double(), self.rows.double()
        cols = W.shape[1]
        left, order, costs = torch.arange(cols, dtype=torch.int64, device="cpu"), [], []
        step = max(1, cols // _STEPS)
        while len(left):
            gain = (rows @ W.square()) / H.diagonal()
            pruned = gain.argsort()[:step]
            kept = torch.ones(len(left), dtype=torch.bool, device="cpu").index_fill_(0, pruned, False)
            staying = kept.nonzero()[:, 0]
            order.append(left[pruned])
            costs.append(gain[pruned])
            lost = H[pruned]
            compensation = torch.linalg.solve(lost[:, pruned], lost[:, staying])
            W = W[:, staying] - W[:, pruned] @ compensation
            H = H[staying][:, staying] - H[:, pruned][staying] @ compensation
            left = left[staying]
        places = torch.linspace(0, 1e-6, cols, dtype=torch.float64, device="cpu")
        rising = torch.cat(costs).cummax(0).values * (1 + places)
        return torch.empty(cols, dtype=torch.float64, device="cpu").index_copy_(0, torch.cat(order), rising)

    def first_columns(self) -> Tensor:
        """The cost of pruning each column by itself from all rows, [cols]."""
        return (self.rows @ self.target.square()) / self.factor.square().sum(0)

    def groups(self, units: Groups) -> Tensor:
        """The mask of an N:M pattern; each group is decided when the sweep comes to its first column."""
        mask = torch.zeros(self.target.shape, dtype=torch.bool, device="cpu")
        scale = self.factor.diagonal()

        def drop(start: int, errors: Tensor, weights: Tensor) -> Tensor:
            if start % units.size == 0:
                here = slice(start, start + units.size)
                mask[:, here] = units.select((weights[:, : units.size] / scale[here]).square())
            return ~mask[:, start : start + 1]

        self._sweep(1, drop, max(_BLOCK // units.size, 1) * units.size)
        return mask

    def share(self, units: Blocks, count: int) -> Tensor:
        """Gains whose `count` largest are to be kept, from a sweep with a threshold that keeps about so many."""
        gains = units.folded(static(self.target, self.importance, HESSIAN)).sum((2, 3))
        if not 0 < count < gains.numel():
            return gains
        for _ in range(_ROUNDS):
            threshold = float(torch.kthvalue(gains.reshape(-1), gains.numel() - count).values)
            gains, _ = self.blocks(units, threshold)
        return gains

    def _sweep(self, width: int, drop: Callable[[int, Tensor, Tensor], Tensor], block: int = _BLOCK) -> None:
        """Visit blocks of `width` columns from the first to the last.

        drop: (first column, errors [rows, width] of pruning it, in units of U, the updated weights from there on) ->
        whether each entry is pruned, bool, broadcast against the errors.
        """
        U, W = self.factor, self.target.clone()
        cols, span = W.shape[1], max(block // width, 1) * width
        for first in range(0, cols, span):
            last = min(first + span, cols)
            errors = torch.zeros(len(W), last - first, dtype=W.dtype, device="cpu")
            for i in range(first, last, width):
                j = min(i + width, last)
                made = self._errors(W[:, i:j], U[i:j, i:j])
                made = made * drop(i, made, W[:, i:last])
                W[:, i:last] -= made @ U[i:j, i:last]
                errors[:, i - first : j - first] = made
            W[:, last:] -= errors @ U[first:last, last:]

    @staticmethod
    def _errors(weights: Tensor, corner: Tensor) -> Tensor:
        """E with E U_BB = w_B."""
        if corner.numel() == 1:
            return weights / corner
        return torch.linalg.solve_triangular(corner, weights, upper=True, left=False)
