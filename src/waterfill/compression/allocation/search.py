"""One price for all weights: the price at which a budget of bits is spent, and how to spend it exactly.

Every weight's curve is measured on a sample; the sum of the curves gives the price. Weights are then fitted from the
smallest to the largest, each at the price that the remaining budget and the remaining curves call for, so that what the
samples got wrong is shared by those that follow; the last and largest are fitted until the budget is met.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from waterfill.errors import BudgetError

DEAREST, CHEAPEST = 30, -30
"""Exponents of 4: beyond these prices nothing more is saved or bought."""
_STILL = 4  # so many prices in a row without a change are a plateau
_TRIES = 8
_GROUP, _GROUPS = 4, 12
FILL = 0.993
"""The share of a budget that is to be used where the parts allow."""

Fit = Callable[[int, float], float]
"""(index of a weight, price) -> the real bits of the part found there, which the callee keeps."""


@dataclass(frozen=True)
class Bracket:
    """Two neighboring grid prices, 4^k and 4^(k+1), and every curve's bits at both ([weights], float64)."""

    k: int
    low: np.ndarray
    high: np.ndarray

    def share(self, bits: float, since: slice = slice(None)) -> float:
        """Where between the two prices (0 to 1, or slightly beyond) the curves `since` sum to `bits`."""
        most, least = float(self.low[since].sum()), float(self.high[since].sum())
        return float(np.clip((most - bits) / max(most - least, 1e-9), -1.5, 2.5))

    def price(self, share: float) -> float:
        """The price at a share of the way."""
        return 4.0 ** (self.k + share)

    def bits(self, i: int, share: float) -> float:
        """Predicted bits of weight i."""
        return float(self.low[i] + share * (self.high[i] - self.low[i]))


def bracket(measure_one: Callable[[int, int], float], count: int, bits: float, guess: int, workers: int = 1) -> Bracket:
    """The grid prices between which the curves' bits sum to `bits`.

    measure_one: (index of one of `count` curves, k) -> its bits at price 4^k. guess: the k to begin with. Where even
    the cheapest price spends less, the bracket lies there. Raises BudgetError where the dearest spends more.
    """
    with ThreadPoolExecutor(workers) as pool:

        def measure(k: int) -> np.ndarray:
            return np.array(list(pool.map(lambda i: measure_one(i, k), range(count))), dtype=np.float64)

        at = {guess: measure(guess)}
        k, still = guess, 0
        direction = 1 if at[k].sum() > bits else -1

        def short(k: int) -> bool:
            """Whether price 4^k lies on the same side of the budget as the first guess."""
            if k not in at:
                at[k] = measure(k)
            return bool((at[k].sum() > bits) == (direction > 0))

        while short(k) and still < _STILL and CHEAPEST < k < DEAREST:
            k += direction
            short(k)
            still = still + 1 if abs(at[k].sum() - at[k - direction].sum()) <= 1e-4 * at[k].sum() + 8 else 0
        if short(k):  # a plateau, where everything or nothing is bought: it may end further on
            k = _crossing(short, k, DEAREST if direction > 0 else CHEAPEST)
        if short(k) and direction > 0:
            least = at[k].sum() / 8
            raise BudgetError(
                f"the budget allows {bits / 8:.0f} bytes for the weights, but this recipe needs at least {least:.0f}; "
                "allow more, or use a recipe that can spend less"
            )
        low = k - 1 if direction > 0 else k
        return Bracket(low, at[low], at[low + 1] if low + 1 in at else measure(low + 1))


def _crossing(short: Callable[[int], bool], near: int, far: int) -> int:
    """The first k on the way from `near` to `far` that is not `short`, by bisection; `far` if all are."""
    if short(far):
        return far
    while abs(far - near) > 1:
        middle = (near + far) // 2
        near, far = (middle, far) if short(middle) else (near, middle)
    return far


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
    with ThreadPoolExecutor(workers) as pool:
        for group in _groups(ordered):
            ratio = float(np.clip(ledger.total / expected, 0.8, 1.25)) if expected > 0.05 * budget else 1.0
            share = ordered.share((budget - ledger.total) / ratio, slice(group.start, None))
            price = found.price(share)
            members = [int(i) for i in order[group]]
            for i, bits in zip(members, pool.map(lambda i, at=price: fit(i, at), members), strict=True):
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
