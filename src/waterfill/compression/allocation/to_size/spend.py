"""Spends a budget of bits: the order in which weights are fitted, their prices, and which are fitted again.

Weights are fitted from the smallest to the largest, each at the price that follows from the remaining budget and the
remaining curves, so that later weights absorb the errors of the samples; the last and largest are fitted until the
budget is met.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from waterfill.compression.allocation.to_size.search import Bracket
from waterfill.compression.allocation.workers import Workers

FILL = 0.993
"""The share of a budget that is to be used where the parts allow."""
_WEIGHTS_OF_A_GROUP, _GROUPS = 4, 12
_REFITS = 8  # of one weight
_FLAT = 8.0  # bits between two grid prices: less is no change

Fit = Callable[[int, float], float]
"""(index of a weight, price) -> the real bits of the part at that price, which the callee keeps."""


@dataclass
class Ledger:
    """Price and real bits of each weight that was fitted, by its index."""

    prices: dict[int, float] = field(default_factory=dict)
    bits: dict[int, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Real bits of all weights so far."""
        return sum(self.bits.values())

    @property
    def lengths(self) -> list[int]:
        """Bytes of each weight's blob."""
        return [int(self.bits[i] / 8) for i in range(len(self.bits))]


def spend(bracket: Bracket, budget: float, fit: Fit, workers: Workers) -> Ledger:
    """Fit every weight so that the real bits sum to at most `budget` and to `FILL` of it, where the parts allow.

    Prices are set anew for one group of weights after the other, from what the groups before really spent; so they do
    not depend on the number of threads.
    """
    ledger = Ledger()
    order = np.argsort(bracket.low + bracket.high, kind="stable")
    ordered = Bracket(bracket.k, bracket.low[order], bracket.high[order])  # where fixed ones are sized as others
    expected = 0.0
    for group in _groups(ordered):
        ratio = float(np.clip(ledger.total / expected, 0.8, 1.25)) if expected > max(0.0, 0.05 * budget) else 1.0
        share = ordered.share((budget - ledger.total) / ratio, slice(group.start, None))
        price = bracket.price(share)
        members = [int(i) for i in order[group]]
        for i, bits in zip(members, workers.map(_at_price(fit, price), members), strict=True):
            ledger.prices[i], ledger.bits[i] = price, bits
            expected += bracket.bits(i, share)
    refit_to_budget(bracket, budget, fit, ledger, bracket.largest_first)
    return ledger


def _at_price(fit: Fit, price: float) -> Callable[[int], float]:
    return lambda i: fit(i, price)


def _groups(ordered: Bracket) -> Iterator[slice]:
    """Neighbors of at least `_WEIGHTS_OF_A_GROUP` weights and a `_GROUPS`-th of all bits together."""
    bits = np.cumsum(ordered.low + ordered.high)
    start, before = 0, 0.0
    for end in range(1, len(bits) + 1):
        enough = end - start >= _WEIGHTS_OF_A_GROUP and bits[end - 1] - before >= bits[-1] / _GROUPS
        if enough or end == len(bits):
            yield slice(start, end)
            start, before = end, float(bits[end - 1])


def refit_to_budget(bracket: Bracket, budget: float, fit: Fit, ledger: Ledger, order: Sequence[int]) -> None:
    """Fit weights again, one after the other in `order`, until what is spent lies between FILL * budget and budget.

    Where the parts do not allow that, it may lie elsewhere.
    """
    slack = (1 - FILL) * budget / 2
    for i in order:
        if FILL * budget <= ledger.total <= budget:
            return
        room = budget - (ledger.total - ledger.bits[i])
        if room <= 0 or (ledger.bits[i] < room and bracket.slope(i) < _FLAT):
            continue
        goal = Goal(room, slack, max(bracket.slope(i), 1.0))
        at, own = ledger.prices[i], ledger.bits[i]
        ledger.prices[i], ledger.bits[i] = _refit_one(partial(fit, i), at, own, goal)


@dataclass(frozen=True)
class Goal:
    """Bits for one weight: at most `room`, and less by `slack` at most. slope: bits to a factor of 4 in the price."""

    room: float
    slack: float
    slope: float

    @property
    def middle(self) -> float:
        """Bits to aim at."""
        return self.room - min(self.slack, 0.002 * self.room)

    def next_price(self, tried: dict[float, float]) -> float:
        """The next price to try: between the nearest that spent more and less, else along the slope."""
        over = {p: b for p, b in tried.items() if b > self.middle}
        under = {p: b for p, b in tried.items() if b <= self.middle}
        if over and under:
            a, b = max(over), min(under)
            share = (over[a] - self.middle) / (over[a] - under[b])
            return float(a * (b / a) ** float(np.clip(share, 0.1, 0.9)))
        price = max(over) if over else min(under)
        return float(price * 4.0 ** float(np.clip(1.2 * (tried[price] - self.middle) / self.slope, -2, 2)))


def _refit_one(fit: Callable[[float], float], price: float, bits: float, goal: Goal) -> tuple[float, float]:
    """Price and bits of a weight fitted again, from the price and bits it has; the most bits within the goal's room."""
    tried = {price: bits}
    for _ in range(_REFITS):
        price = goal.next_price(tried)
        if price in tried:
            break
        tried[price] = fit(price)
        if goal.middle - goal.slack <= tried[price] <= goal.room:
            break
    within = [p for p in tried if tried[p] <= goal.room]
    best = max(within, key=lambda p: tried[p]) if within else min(tried, key=lambda p: tried[p])
    if best != price or price not in tried:
        tried[best] = fit(best)
    return best, tried[best]
