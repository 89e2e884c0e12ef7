"""The scores of a network on each input, and the standard error of a difference between two networks on the same ones.

Inputs are a random sample, and so every mean over them has a standard error. Two networks are run on the same inputs:
what they share cancels in the paired differences, whose standard error is far below that of either mean. Rows of one
input, the tokens of a text, are not independent: an input counts as one draw (a ratio estimate over clusters; Cochran,
1977).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from waterfill.errors import BadInput


@dataclass(frozen=True, eq=False)
class Scores:
    """sums: [inputs] of the values of an input's rows, float64; counts: [inputs] of its rows.

    Quality is the mean of all rows, or its exponential. chance: the quality of a constant answer, if known. step: the
    least change of one row where its values are whole numbers, such as right and wrong; else 0.
    """

    sums: Tensor
    counts: Tensor
    exponential: bool = False
    chance: float | None = None
    step: float = 0.0

    @property
    def mean(self) -> float:
        """The mean of all rows."""
        return float(self.sums.sum()) / max(1.0, float(self.counts.sum()))

    @property
    def value(self) -> float:
        """The quality."""
        return _exponential(self.mean) if self.exponential else self.mean

    def influence(self) -> Tensor:
        """The influence of each input on the quality, [inputs]; they sum to 0."""
        slope = _exponential(self.mean) if self.exponential else 1.0
        return slope * (self.sums - self.mean * self.counts) / self.counts.sum().clamp_min(1)

    @property
    def error(self) -> float:
        """The standard error of the quality; NaN for less than two inputs."""
        return _standard_error(self.influence())

    def beats_chance(self, better: int) -> bool:
        """Whether the quality is better than chance by two standard errors; true where chance is not known."""
        margin = 0.0 if math.isnan(self.error) else 2 * self.error
        return self.chance is None or better * (self.value - self.chance) > margin


@dataclass(frozen=True)
class Difference:
    """A difference in quality. lost: of the original less that of the other, so that more is worse. error: its standard
    error, NaN where it is not known. inputs: how many were measured, 0 where that is not known."""

    lost: float
    error: float = math.nan
    inputs: int = 0

    def sure(self, allowed: float) -> float | None:
        """The probability that no more than `allowed` is lost on all inputs of this kind; None where unknown."""
        if math.isnan(self.error) or math.isnan(self.lost):
            return None
        if self.error == 0:
            return float(self.lost <= allowed)
        return NormalDist().cdf((allowed - self.lost) / self.error)


def difference(original: Scores, other: Scores, better: int) -> Difference:
    """The loss of quality from the original to another network. Raises BadInput if their inputs are not the same.

    Where values are whole numbers, one more changed input than observed is counted: among few inputs there may be none
    by chance (Agresti and Min, 2005).
    """
    if not torch.equal(original.counts, other.counts):
        raise BadInput("two measurements are of different inputs; let the measure go through the same ones each time")
    moved = better * (original.influence() - other.influence())
    rows = float(original.counts.sum())
    error = _standard_error(moved, original.step / max(1.0, rows))
    return Difference(better * (original.value - other.value), error, len(moved))


def _standard_error(influence: Tensor, more: float = 0.0) -> float:
    count = len(influence)
    if count < 2:
        return math.nan
    return math.sqrt((float(influence.double().square().sum()) + more**2) * count / (count - 1))


def _exponential(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
