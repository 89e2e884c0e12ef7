"""The price of each weight in turn, such that all of them together spend a budget."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from waterfill.compression.allocation.curve import Point
from waterfill.compression.allocation.to_size.search import Bracket

_REACH = 0.5  # of a factor of 4: how far a price may leave the common one, before what weights really spent and after
_RATIO = 0.8, 1.25  # limits of what weights spent, relative to their curves
_MUCH, _CLOSE = 0.1, 0.003  # of the budget: what a weight holds that is fitted again, and how far off it may be
_FURTHEST = 40.0  # exponents of 4
_HALVINGS = 50


@dataclass(frozen=True)
class RateCurve:
    """Bits of a weight by the exponent of 4 of the price: between points linear, beyond them one bit an entry for each
    factor of 4 as at high rate, and half as many bits."""

    points: Mapping[int, Point]
    entries: int

    def bits(self, exponent: float) -> float:
        ks = sorted(self.points)
        values = [self.points[k].bits for k in ks]
        if exponent < ks[0]:
            return values[0] + (ks[0] - exponent) * self.entries
        if exponent > ks[-1]:
            return float(values[-1] * 0.5 ** (exponent - ks[-1]))
        return float(np.interp(exponent, ks, values))


@dataclass
class Pace:
    """curves: by number, of all weights. allowed: bits for all of them; None where a price is given. spent: bits of the
    weights that are fitted, in order; expected: the same by their curves. common: the exponent of 4 of the price at
    which all curves together spend what is allowed. scaled: what curves were multiplied by, in order."""

    curves: Mapping[int, RateCurve]
    allowed: float | None
    given: float | None = None
    spent: dict[int, float] = field(default_factory=dict)
    expected: float = 0.0
    scaled: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.common = (
            self._exponent(self.curves, self.allowed) if self.allowed is not None else float(_log4(self.given))
        )

    def price(self) -> float:
        """The price for the weights that are next."""
        if self.allowed is None:
            return 4.0**self.common
        left = [i for i in self.curves if i not in self.spent]
        spent = sum(self.spent.values())
        ratio = float(np.clip(spent / self.expected, *_RATIO)) if self.expected > 0.05 * self.allowed else 1.0
        own = self._exponent(left, max(0.0, self.allowed - spent) / ratio)
        if abs(own - self.common) > _REACH:  # then curves are wrong alike, or those of a few weights are
            real = self._exponent(self.curves, self.allowed / ratio)
            own = float(np.clip(own, min(self.common, real) - _REACH, max(self.common, real) + _REACH))
        return float(4.0**own)

    def add(self, i: int, price: float, bits: float) -> None:
        """Note what a weight spent."""
        self.expected += self.curves[i].bits(_log4(price))
        self.spent[i] = bits

    def better_price(self, i: int, price: float, bits: float) -> float | None:
        """A better price for a weight that spent so many bits at one, where that is much of the budget and its curve
        was wrong, so that the common price is another."""
        if self.allowed is None or bits < _MUCH * self.allowed:
            return None
        curve, at = self.curves[i], _log4(price)
        if abs(curve.bits(at) - bits) < _CLOSE * self.allowed:
            return None
        self.scale(i, bits / max(1.0, curve.bits(at)))
        self.common = self._exponent(self.curves, self.allowed)
        return self.price()

    def scale(self, i: int, share: float) -> None:
        """Multiply the curve of a weight."""
        curve = self.curves[i]
        self.scaled.append((i, share))
        points = {k: Point(share * point.bits, point.distortion) for k, point in curve.points.items()}
        self.curves = {**self.curves, i: RateCurve(points, round(share * curve.entries))}

    def bracket(self) -> Bracket:
        """The curves at the two grid prices around the common one."""
        k = int(np.floor(self.common))
        low, high = ([self.curves[i].bits(at) for i in range(len(self.curves))] for at in (k, k + 1))
        return Bracket(k, np.array(low, dtype=np.float64), np.array(high, dtype=np.float64))

    def _exponent(self, weights: Iterable[int], bits: float) -> float:
        """The exponent at which these weights spend so many bits."""
        chosen = [self.curves[i] for i in weights]
        low, high = -_FURTHEST, _FURTHEST
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(c.bits(middle) for c in chosen) > bits else (low, middle)
        return (low + high) / 2


def _log4(price: float | None) -> float:
    assert price is not None
    return float(np.log(price) / np.log(4))
