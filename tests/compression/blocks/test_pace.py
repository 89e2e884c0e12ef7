"""The price of each weight in turn: a budget is kept where curves promise too much or too little."""

import math

import pytest

from waterfill.compression.allocation.curve import Point
from waterfill.compression.blocks.pace import Pace, RateCurve

ENTRIES, COUNT, ALLOWED = 1000, 60, 180_000.0


def curves() -> dict[int, RateCurve]:
    """Of weights alike: one bit an entry less for each factor of 4 of the price, 3 bits at 4 to the power of -10."""
    points = {k: Point(ENTRIES * (-7.0 - k), 4.0**k) for k in range(-16, -7)}
    return {i: RateCurve(points, ENTRIES) for i in range(COUNT)}


@pytest.mark.parametrize("ratio", [0.85, 1.0, 1.1, 1.2])
def test_a_budget_is_kept_where_all_weights_spend_otherwise_than_their_curves(ratio: float) -> None:
    pace = Pace(curves(), ALLOWED)
    for i in range(COUNT):
        price = pace.price()
        bits = ratio * pace.curves[i].bits(exponent(price))
        pace.add(i, price, bits)
    assert sum(pace.spent.values()) == pytest.approx(ALLOWED, rel=0.01)


def test_a_price_does_not_run_away_for_what_a_few_weights_spent() -> None:
    pace = Pace(curves(), ALLOWED)
    for i in range(COUNT // 2):
        price = pace.price()
        wild = 3.0 if i < 2 else 1.0
        pace.add(i, price, wild * pace.curves[i].bits(exponent(price)))
        assert abs(exponent(pace.price()) - pace.common) <= 1.5


def exponent(price: float) -> float:
    """The exponent of 4."""
    return math.log(price, 4)
