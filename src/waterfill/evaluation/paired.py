"""What a network scores on each input, and how sure a difference between two networks on the same inputs is.

Inputs are drawn by chance, and so is every mean over them. Two networks meet the same inputs: what most of them answer
alike cancels in the paired differences, whose standard error is far below that of either mean. Rows of one input, the
tokens of a text, are not independent: an input counts as one draw (a ratio estimate over clusters; Cochran, 1977).
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

    Quality is the mean of all rows, or its exponential. chance: the quality of what answers always alike, if known.
    step: what one row at least changes where its values are whole numbers, such as right and wrong; else 0.
    """

    sums: Tensor
    counts: Tensor
    exponential: bool = False
    chance: float | None = None
    step: float = 0.0

    @property
    def mean(self) -> float:
        """Of all rows."""
        return float(self.sums.sum()) / max(1.0, float(self.counts.sum()))

    @property
    def value(self) -> float:
        """The quality."""
        return _exponential(self.mean) if self.exponential else self.mean

    def influence(self) -> Tensor:
        """What each input moves the quality by, [inputs]: their sum is 0."""
        slope = _exponential(self.mean) if self.exponential else 1.0
        return slope * (self.sums - self.mean * self.counts) / self.counts.sum().clamp_min(1)

    @property
    def error(self) -> float:
        """The standard error of the quality; NaN for less than two inputs."""
        return _standard_error(self.influence())

    def beats_chance(self, better: int) -> bool:
        """Whether the quality is better than chance by more than two standard errors, as far as that is known."""
        margin = 0.0 if math.isnan(self.error) else 2 * self.error
        return self.chance is None or better * (self.value - self.chance) > margin


@dataclass(frozen=True)
class Difference:
    """lost: quality of the original less that of the other, in the sense that more is worse. error: its standard error,
    NaN where it is not known. inputs: how many were measured, 0 where that is not known."""

    lost: float
    error: float = math.nan
    inputs: int = 0

    def sure(self, allowed: float) -> float | None:
        """The chance that on all inputs of this kind no more is lost than is allowed; None where it is not known."""
        if math.isnan(self.error) or math.isnan(self.lost):
            return None
        if self.error == 0:
            return float(self.lost <= allowed)
        return NormalDist().cdf((allowed - self.lost) / self.error)


def difference(original: Scores, other: Scores, better: int) -> Difference:
    """What is lost from the original to another network on the same inputs. Raises BadInput if they are not the same.

    Where values are whole numbers, one more changed input is counted than was seen: of few inputs none may have changed
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
