"""One price for all: textbook water-filling, and budgets that are never exceeded and nearly used."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterfill.compression.allocation.to_size.search import bracket
from waterfill.compression.allocation.to_size.spend import Ledger, spend
from waterfill.compression.allocation.workers import Workers

Source = Callable[[float], float]


def gaussian(entries: int, variance: float) -> Source:
    """Bits of a Gaussian source by price in nats a bit: D = price / (2 ln 2) an entry, at most the variance."""
    return lambda price: entries * max(0.0, 0.5 * math.log2(variance * 2 * math.log(2) / price))


def stepped(source: Source, step: float) -> Source:
    """A source that can only spend multiples of a step."""
    return lambda price: math.floor(source(price) / step) * step


def misjudged(source: Source, factor: float) -> Source:
    """A source of which a sample promised too much or too little."""
    return lambda price: factor * source(price)


def allocate(sources: list[Source], budget: float, workers: int = 1, real: list[Source] | None = None) -> Ledger:
    """Spend a budget on sources whose fits (`real`) may need other bits than their curves promise."""
    fits = real or sources
    found = bracket(lambda i, k: sources[i](4.0**k), len(sources), budget, -5, Workers(workers))
    return spend(found, budget, lambda i, price: fits[i](price), Workers(workers))


def test_reverse_water_filling_of_gaussian_sources():
    """Cover and Thomas, theorem 10.3.3: one level for all, and no bits for sources below it."""
    variances = [8.0, 2.0, 1.0, 0.5, 1e-5]
    level = 0.02
    wanted = [500 * max(0.0, math.log2(v / level)) for v in variances]
    ledger = allocate([gaussian(1000, v) for v in variances], sum(wanted))
    assert ledger.bits[4] == 0
    assert [ledger.bits[i] for i in range(5)] == pytest.approx(wanted, rel=0.02, abs=20)
    assert all(ledger.prices[i] == pytest.approx(2 * math.log(2) * level, rel=0.1) for i in range(4))


sources = st.lists(
    st.tuples(st.integers(200, 100_000), st.floats(1e-6, 1e3), st.floats(0.8, 1.2)), min_size=1, max_size=12
)


@given(sources, st.floats(0.5, 12), st.sampled_from([1, 2]))
def test_the_budget_is_kept_and_used(drawn, rate, workers):
    budget = rate * sum(n for n, _, _ in drawn)
    curves = [gaussian(n, v) for n, v, _ in drawn]
    off = [misjudged(gaussian(n, v), factor) for n, v, factor in drawn]
    ledger = allocate(curves, budget, workers, off)
    assert sorted(ledger.bits) == list(range(len(drawn)))
    assert ledger.total <= budget
    assert ledger.total >= 0.98 * budget
    assert all(ledger.bits[i] == off[i](ledger.prices[i]) for i in ledger.bits)


@given(sources, st.floats(0.5, 12), st.floats(0.001, 0.3))
def test_sources_with_jumps_never_exceed_the_budget(drawn, rate, coarse):
    budget = rate * sum(n for n, _, _ in drawn)
    jumping = [stepped(gaussian(n, v), max(8.0, coarse * n)) for n, v, _ in drawn]
    ledger = allocate(jumping, budget)
    assert ledger.total <= budget
    assert all(ledger.bits[i] == jumping[i](ledger.prices[i]) for i in ledger.bits)


def test_fine_jumps_still_use_the_budget():
    ledger = allocate([stepped(gaussian(n, 1.0), 8.0) for n in (100, 5_000, 90_000)], 3 * 95_100)
    assert 0.98 * 3 * 95_100 <= ledger.total <= 3 * 95_100


def test_a_source_of_fixed_rate_is_paid_first():
    def fixed(price: float) -> float:
        return 4000.0

    ledger = allocate([fixed, gaussian(10_000, 1.0), fixed], 38_000)
    assert ledger.bits[0] == ledger.bits[2] == 4000
    assert 0.98 * 38_000 <= ledger.total <= 38_000


def test_more_budget_than_anyone_can_spend_is_left():
    def modest(price: float) -> float:
        return min(900.0, gaussian(100, 1.0)(price))

    assert allocate([modest, modest], 1e6).total == 1800


@pytest.mark.parametrize("budget", [7_999.0, 100.0, 0.0, -50.0])
def test_of_a_budget_below_the_least_the_least_is_spent(budget):
    def fixed(price: float) -> float:
        return 4000.0

    def modest(price: float) -> float:
        return 500 + gaussian(100, 1.0)(price)

    assert allocate([fixed, modest, fixed], budget).total == 8500


def test_fits_that_need_more_than_their_curves_promised_cost_what_they_cost():
    assert allocate([gaussian(1000, 1.0)], 2000, real=[lambda price: 9000.0]).total == 9000


def test_interpolation_between_the_two_prices():
    found = bracket(lambda i, k: [gaussian(100, 1.0), gaussian(300, 4.0)][i](4.0**k), 2, 1000.0, 0, Workers())
    share = found.share(1000.0)
    assert 0 <= share <= 1
    assert found.bits(0, share) + found.bits(1, share) == pytest.approx(1000)
    assert np.isclose(found.price(0), 4.0**found.k)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_a_first_guess_far_off_is_no_obstacle(scale):
    def bounded(price: float) -> float:
        return min(24_000.0, gaussian(1000, scale)(price))

    assert 0.98 * 3000 <= allocate([bounded], 3000).total <= 3000
