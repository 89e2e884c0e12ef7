"""Rate and distortion of one weight as functions of the price: interpolated from fits, and for Gaussian sources."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from waterfill.importance import Importance
from waterfill.theory import reverse_water_filling

_SMALLEST_VARIANCE = 1e-60
_MOST = 64.0  # bits of an entry, where a budget has more
_QUANTILES = 128  # that stand for the variances of all rows, or of all columns


@dataclass(frozen=True)
class Point:
    """Rate and distortion of a weight at one price: bits, and nats."""

    bits: float
    distortion: float


@dataclass(frozen=True)
class Curve:
    """Bits and distortion at any price, interpolated between fits at the prices 4^k, each made on first use.

    measure: price -> Point. Between the prices 4^k, bits are interpolated in the logarithm of the price (at high rate
    they fall by one bit per entry for every factor of four), distortions geometrically.
    """

    measure: Callable[[float], Point]
    points: dict[int, Point] = field(default_factory=dict)

    def at_grid(self, k: int) -> Point:
        """The point at price 4^k."""
        if k not in self.points:
            self.points[k] = self.measure(4.0**k)
        return self.points[k]

    def at(self, price: float) -> Point:
        """The point at any price, interpolated."""
        place = math.log(price, 4)
        k = math.floor(place)
        low, high, share = self.at_grid(k), self.at_grid(k + 1), place - k
        if share == 0:
            return low
        bits = low.bits + share * (high.bits - low.bits)
        logs = [math.log(max(p.distortion, 1e-300)) for p in (low, high)]
        return Point(bits, math.exp(logs[0] + share * (logs[1] - logs[0])))


def water_level(target: Tensor, importance: Importance, bits: float) -> float:
    """The logarithm to base 2 of the water level at which the entries of a matrix [rows, cols] spend `bits` each.

    An entry spends 1/2 log2 of its variance over the level, and none if that is negative. Its variance is the product
    of a row's and a column's, each in the metric of the importance; a vector's entries have one each.
    """
    if importance.gram is None:
        columns = importance.diagonal.double().expand(target.shape[1])
    else:
        assert importance.lower is not None
        columns = torch.from_numpy(np.diag(importance.lower).astype(np.float64)).square()
        columns = columns.repeat(target.shape[1] // len(columns))
    rows = importance.rows.double() * target.double().square().mean(1)
    if target.shape[0] == 1:
        rows, columns = importance.rows.double().reshape(-1)[:1], columns * target[0].double().square()
    variances = np.outer(_quantiles(rows), _quantiles(columns))
    return math.log2(reverse_water_filling(variances, rate=min(bits, _MOST) * variances.size).level)


def _quantiles(variances: Tensor) -> np.ndarray:
    """Evenly spread quantiles of many variances."""
    ordered = variances.clamp_min(_SMALLEST_VARIANCE).sort().values
    return ordered[:: max(1, len(ordered) // _QUANTILES)].numpy()
