"""Rate-distortion points: the lower hull against brute force, and the curve through them."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterfill.compression.allocation.curve import Curve, Point, hull

number = st.integers(0, 12).map(float)


def chosen_by_some_price(points: list[Point]) -> set[tuple[float, float]]:
    """Every point that is cheapest at one of many prices: what the hull must hold, by brute force."""
    slopes = [
        (a.distortion - b.distortion) / (b.bits - a.bits)
        for a in points
        for b in points
        if b.bits > a.bits and a.distortion > b.distortion
    ]
    marks = sorted({0.0, *slopes, 1e9})
    prices = [(a + b) / 2 for a, b in pairwise(marks)]
    found = set()
    for price in prices:
        best = min(points, key=lambda p: (p.distortion + price * p.bits, p.bits))
        found.add((best.bits, best.distortion))
    return found


@given(st.lists(st.builds(Point, number, number), min_size=1, max_size=12))
def test_the_hull_is_what_some_price_would_choose(points):
    kept = [(p.bits, p.distortion) for p in hull(points)]
    assert kept == sorted(kept)
    assert all(a[1] > b[1] for a, b in pairwise(kept))
    assert chosen_by_some_price(points) == set(kept)


def gaussian(price: float) -> Point:
    """1000 entries of a Gaussian source of unit variance: R = 1/2 log2(1/D), -dD/dR = 2 ln2 D = price."""
    distortion = min(1.0, price / (2 * math.log(2)))
    return Point(500 * math.log2(1 / distortion), 1000 * distortion)


def test_a_curve_is_measured_only_where_it_is_asked():
    asked = []
    curve = Curve(lambda price: asked.append(price) or gaussian(price))
    curve.at(4.0**-3.5)
    curve.at(4.0**-3.2)
    curve.at_grid(-4)
    assert sorted(asked) == [4.0**-4, 4.0**-3]


@pytest.mark.parametrize("k", [-6.0, -5.5, -3.25, -2.01])
def test_between_grid_prices_a_gaussian_source_is_met_exactly(k):
    found, wanted = Curve(gaussian).at(4.0**k), gaussian(4.0**k)
    assert found.bits == pytest.approx(wanted.bits, rel=1e-9)
    assert found.distortion == pytest.approx(wanted.distortion, rel=1e-9)


def test_a_distortion_of_zero_stays_finite():
    point = Curve(lambda price: Point(10.0, 0.0)).at(0.3)
    assert point.bits == 10 and point.distortion == pytest.approx(0, abs=1e-200)
