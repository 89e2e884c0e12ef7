"""A support found by leaving out a share of the units at a time, with the exact refit after each.

What a unit adds to the error if it goes alone is right for the last one to go, but not while many are to go that could
have stood in for each other. Refitting in between shows who took over (docs/parts.md has the comparison).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from waterfill.importance import Importance
from waterfill.parts.pruning.patterns import Blocks, Groups, largest
from waterfill.parts.pruning.refit import refit

_STAYING, _SLICE = 0.8, 0.06  # after each step at least so many of the units, and at most so many of all gone
_STEPS = 6  # of conjugate gradients in between
_SHARE_AT_ONCE = 0.02  # of the units; so few go without another look
_CHEAP = 0.1  # of the threshold; what gains less goes at once, however much it is


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
        """What each unit would add to the distortion if it alone went, the others as they are; 0 for those gone."""
        folded = self.units.folded(self._fitted)
        image = torch.einsum("twhi,wij->twhj", folded, self._corners) * folded
        weights = torch.nn.functional.pad(
            self.importance.row_weights(self.shape[0]), (0, -self.shape[0] % self.units.height)
        )
        return 0.5 * (image.sum(3) * weights.reshape(-1, 1, self.units.height)).sum(2)

    @property
    def distortion(self) -> float:
        """What is lost with the units that are gone, nats."""
        return self.importance.distortion(self.target - self._fitted)

    def to(self, count: int) -> Tensor:
        """Go on until `count` units are kept: their mask."""
        kept = int(self.mask.sum())
        while kept > count:
            kept = max(count, self._next(kept))
            self._keep(kept)
        return self.mask

    def until(self, threshold: Callable[[Tensor], float], scale: float) -> Tensor:
        """Go on while there are gains of at most scale * threshold(gains): the mask of what is kept then."""
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
        """How many may be kept after the next step; `most`: the share of all that may go."""
        return kept - max(1, min(int((1 - _STAYING) * kept), int(most * self.mask.numel())))

    def _keep(self, count: int) -> None:
        """The `count` units of most gain."""
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


def thin_groups(target: Tensor, importance: Importance, groups: Groups) -> Tensor:
    """The mask of an N:M pattern: one of each group goes at a time."""
    weights = importance.entry_weights(target.shape[0], target.shape[1])
    mask, fitted = torch.ones(target.shape, dtype=torch.bool, device="cpu"), target
    for kept in range(groups.size - 1, groups.kept - 1, -1):
        gain = (weights * fitted.square()).masked_fill(~mask, -0.5)
        mask = Groups(kept, groups.size).select(gain)
        fitted = refit(target, mask, importance, fitted, 2 * _STEPS)
    return mask
