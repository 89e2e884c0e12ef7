"""Gradual pruning: a share of the units at a time, with a refit of the others after each step.

The cost of pruning one unit by itself is right for the last one, but not while many are to be pruned that could
compensate for each other. Refitting in between updates the costs (docs/parts.md has the comparison).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from waterfill.importance import Importance
from waterfill.parts.pruning.patterns import Blocks, Groups, largest
from waterfill.parts.pruning.refit import refit

_STAYING, _SLICE = 0.8, 0.06  # shares: kept of the units left in each step, at least; pruned of all, at most
_STEPS = 6  # of conjugate gradients after each step
_SHARE_AT_ONCE = 0.02  # of the units; so few are pruned without another round
_CHEAP = 0.1  # of the threshold; units of less gain are pruned at once, however many they are


class GradualPruning:
    """Units of `target` [rows, cols] that are still kept, and the values refitted on them; a Gram matrix is needed."""

    def __init__(self, target: Tensor, importance: Importance, units: Blocks) -> None:
        self.target, self.importance, self.units = target, importance, units
        self.shape = (target.shape[0], target.shape[1])
        self.mask = torch.ones(units.grid(self.shape), dtype=torch.bool, device="cpu")
        self._fitted = target
        self._corners = _corners(importance, units, self.shape[1])

    @property
    def gain(self) -> Tensor:
        """The rise of the distortion if a unit alone were pruned, the others unchanged; 0 for pruned ones."""
        folded = self.units.folded(self._fitted)
        image = torch.einsum("twhi,wij->twhj", folded, self._corners) * folded
        weights = torch.nn.functional.pad(
            self.importance.row_weights(self.shape[0]), (0, -self.shape[0] % self.units.height)
        )
        return 0.5 * (image.sum(3) * weights.reshape(-1, 1, self.units.height)).sum(2)

    @property
    def distortion(self) -> float:
        """The distortion of what is pruned so far, nats."""
        return self.importance.distortion(self.target - self._fitted)

    def to(self, count: int) -> Tensor:
        """Prune until `count` units are kept; their mask."""
        kept = int(self.mask.sum())
        while kept > count:
            kept = max(count, self._next(kept))
            self._keep(kept)
        return self.mask

    def until(self, threshold: Callable[[Tensor], float], scale: float) -> Tensor:
        """Prune while there are gains of at most scale * threshold(gains); the mask of the units kept."""
        while True:
            gain, kept = self.gain, int(self.mask.sum())
            level = scale * threshold(gain)
            worth = int((self.mask & (gain > level)).sum())
            if worth == kept:
                return self.mask
            sure = int((gain > _CHEAP * level).sum())
            self._keep(max(worth, min(sure, self._next(kept, 2 * _SLICE))))
            if kept - worth <= _SHARE_AT_ONCE * kept:
                return self.mask

    def _next(self, kept: int, most: float = _SLICE) -> int:
        """How many are kept after the next step; `most`: the share of all that may be pruned."""
        return kept - max(1, min(int((1 - _STAYING) * kept), int(most * self.mask.numel())))

    def _keep(self, count: int) -> None:
        """Keep the `count` units of largest gain, and refit their values."""
        self.mask = largest(self.gain.masked_fill(~self.mask, -1.0), count)
        ones = torch.ones(self.units.values_shape(self.mask, self.shape), dtype=torch.float32, device="cpu")
        support = self.units.scatter(ones, self.mask, self.shape) > 0
        self._fitted = refit(self.target, support, self.importance, self._fitted, _STEPS)


def _corners(importance: Importance, units: Blocks, cols: int) -> Tensor:
    """A of the columns of each unit, [grid columns, width, width]; zero where units stick out."""
    assert importance.gram is not None
    wide, out = -(-cols // units.width), -cols % units.width
    gram = torch.nn.functional.pad(importance.gram.float(), (0, out, 0, out))
    return torch.stack(
        [gram[i : i + units.width, i : i + units.width] for i in range(0, wide * units.width, units.width)]
    )


def prune_groups(target: Tensor, importance: Importance, groups: Groups) -> Tensor:
    """The mask of an N:M pattern, pruned gradually: one entry of each group at a time."""
    weights = importance.entry_weights(target.shape[0], target.shape[1])
    mask, fitted = torch.ones(target.shape, dtype=torch.bool, device="cpu"), target
    for kept in range(groups.size - 1, groups.kept - 1, -1):
        gain = (weights * fitted.square()).masked_fill(~mask, -0.5)
        mask = Groups(kept, groups.size).select(gain)
        fitted = refit(target, mask, importance, fitted, 2 * _STEPS)
    return mask
