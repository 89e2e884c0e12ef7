"""Rate and distortion of one weight as functions of the price: points, and the curve through them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from waterfill.part import Part


@dataclass(frozen=True)
class Point:
    """What a weight costs at one price: bits, distortion in nats, and the part if it was kept."""

    bits: float
    distortion: float
    part: Part | None = None


def hull(points: list[Point]) -> list[Point]:
    """The lower convex hull of (bits, distortion), by ascending bits: the points that some price would choose."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.bits, p.distortion)):
        if best and point.distortion >= best[-1].distortion:
            continue
        while len(best) > 1 and _above(best[-2], best[-1], point):
            best.pop()
        best.append(point)
    return best


def _above(a: Point, b: Point, c: Point) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b.distortion - a.distortion) * (c.bits - a.bits) >= (c.distortion - a.distortion) * (b.bits - a.bits)


@dataclass(frozen=True)
class Curve:
    """Bits and distortion at any price, from fits on a grid of prices that are made when they are first asked for.

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
