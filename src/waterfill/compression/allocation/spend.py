"""A size met to the byte: what is fitted, at which price, and what is fitted again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from waterfill.compression.allocation.search import _GROUP, _GROUPS, Bracket, Fit, in_threads
from waterfill.errors import BudgetError

_TRIES = 8


FILL = 0.993
"""The share of a budget that is to be used where the parts allow."""


@dataclass
class Ledger:
    """What was spent, weight by weight: the price paid and the real bits."""

    prices: dict[int, float] = field(default_factory=dict)
    bits: dict[int, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Real bits of all weights so far."""
        return sum(self.bits.values())


def spend(found: Bracket, budget: float, fit: Fit, workers: int = 1, fill: float = FILL) -> Ledger:
    """Fit every weight so that the real bits sum to at most `budget` and, where the parts allow, to `fill` of it.

    Prices are set anew for one group of weights after the other, from what the groups before really spent; so they do
    not depend on the number of threads. Raises BudgetError if the budget cannot be met.
    """
    ledger = Ledger()
    order = np.argsort(found.low + found.high, kind="stable")
    ordered = Bracket(found.k, found.low[order], found.high[order])
    expected = 0.0
    with in_threads(workers) as each:
        for group in _groups(ordered):
            ratio = float(np.clip(ledger.total / expected, 0.8, 1.25)) if expected > 0.05 * budget else 1.0
            share = ordered.share((budget - ledger.total) / ratio, slice(group.start, None))
            price = found.price(share)
            members = [int(i) for i in order[group]]
            for i, bits in zip(members, each(lambda i, at=price: fit(i, at), members), strict=True):
                ledger.prices[i], ledger.bits[i] = price, bits
                expected += found.bits(i, share)
    settle(found, budget, fit, ledger, fill)
    return ledger


def _groups(ordered: Bracket) -> Iterator[slice]:
    """Neighbors of at least `_GROUP` weights and a `_GROUPS`-th of all bits together."""
    bits = np.cumsum(ordered.low + ordered.high)
    start, before = 0, 0.0
    for end in range(1, len(bits) + 1):
        enough = end - start >= _GROUP and bits[end - 1] - before >= bits[-1] / _GROUPS
        if enough or end == len(bits):
            yield slice(start, end)
            start, before = end, float(bits[end - 1])


def settle(  # noqa: PLR0913 - the curves, the money, and who may be asked
    found: Bracket,
    budget: float,
    fit: Fit,
    ledger: Ledger,
    fill: float = FILL,
    order: Sequence[int] | None = None,
) -> None:
    """Fit weights again, one after the other, until what is spent lies between fill * budget and budget.

    order: which, the largest first where it is not given. Raises BudgetError if that cannot be.
    """
    for i in np.argsort(-found.low - found.high, kind="stable").tolist() if order is None else order:
        if fill * budget <= ledger.total <= budget:
            return
        slope = max(float(found.low[i] - found.high[i]), 1.0)
        own = ledger.bits[i]
        allowed = budget - (ledger.total - own)
        if allowed <= 0 or (own < allowed and found.low[i] - found.high[i] < 8):
            continue
        wanted = allowed - min(0.5 * (1 - fill) * budget, 0.002 * allowed)
        tried = {ledger.prices[i]: own}
        price = ledger.prices[i]
        for _ in range(_TRIES):
            price = _next_price(tried, wanted, slope)
            if price in tried:
                break
            tried[price] = fit(i, price)
            if wanted - 0.5 * (1 - fill) * budget <= tried[price] <= allowed:
                break
        fitting = [p for p in tried if tried[p] <= allowed]
        best = max(fitting, key=lambda p: tried[p]) if fitting else min(tried, key=lambda p: tried[p])
        if best != price or price not in tried:
            tried[best] = fit(i, best)
        ledger.prices[i], ledger.bits[i] = best, tried[best]
    if ledger.total > budget:
        raise BudgetError(
            f"the budget allows {budget / 8:.0f} bytes for the weights, the least found is {ledger.total / 8:.0f}; "
            "allow more, or use a recipe that can spend less"
        )


def _next_price(tried: dict[float, float], wanted: float, slope: float) -> float:
    """The next price to try for `wanted` bits: between the nearest that spent more and less, else along the slope."""
    over = {p: b for p, b in tried.items() if b > wanted}
    under = {p: b for p, b in tried.items() if b <= wanted}
    if over and under:
        a, b = max(over), min(under)
        share = (over[a] - wanted) / (over[a] - under[b])
        return float(a * (b / a) ** float(np.clip(share, 0.1, 0.9)))
    price = max(over) if over else min(under)
    return float(price * 4.0 ** float(np.clip(1.2 * (tried[price] - wanted) / slope, -2, 2)))
