"""One price for all weights: the price at which a budget of bits is spent.

Every weight's curve is measured on a sample; the sum of the curves gives the price.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from waterfill.compression.allocation.workers import Workers

HIGHEST, LOWEST = 30, -30
"""Exponents of 4: beyond these prices the bits no longer change."""
_USUAL, _FURTHER = 14, 16  # exponents: of usual prices, either sign; and beyond these or the guess
_PLATEAU = 4  # prices in a row at which the bits do not change


@dataclass(frozen=True)
class Bracket:
    """Two neighboring grid prices, 4^k and 4^(k+1), and every curve's bits at both ([weights], float64).

    fixed: weights whose sizes are too few to meet a budget by them.
    """

    k: int
    low: np.ndarray
    high: np.ndarray
    fixed: frozenset[int] = frozenset()

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

    def slope(self, i: int) -> float:
        """Bits that weight i saves between the two prices."""
        return float(self.low[i] - self.high[i])

    @property
    def largest_first(self) -> list[int]:
        """The weights by their bits, but those that are fixed."""
        order: list[int] = np.argsort(-self.low - self.high, kind="stable").tolist()
        return [i for i in order if i not in self.fixed]


def bracket(measure_one: Callable[[int, int], float], count: int, bits: float, guess: int, workers: Workers) -> Bracket:
    """The grid prices between which the curves' bits sum to `bits`.

    measure_one: (index of one of `count` curves, k) -> its bits at price 4^k. guess: the k to begin with. Where even
    the lowest price spends less, or the highest more, the bracket lies there.
    """

    def measure(k: int) -> np.ndarray:
        return np.array(workers.map(lambda i: measure_one(i, k), range(count)), dtype=np.float64)

    at = {guess: measure(guess)}
    k, unchanged = guess, 0
    lowest, highest = min(guess, -_USUAL) - _FURTHER, max(guess, _USUAL) + _FURTHER
    direction = 1 if at[k].sum() > bits else -1

    def short(k: int) -> bool:
        """Whether the bits at price 4^k are on the same side of the budget as at the first guess."""
        if k not in at:
            at[k] = measure(k)
        return bool((at[k].sum() > bits) == (direction > 0))

    while short(k) and unchanged < _PLATEAU and lowest < k < highest:
        k += direction
        short(k)
        unchanged = unchanged + 1 if abs(at[k].sum() - at[k - direction].sum()) <= 1e-4 * at[k].sum() + 8 else 0
    if short(k):  # a plateau of constant bits, which may end further on
        k = _crossing(short, k, highest if direction > 0 else lowest)
    low = k - 1 if direction > 0 else k
    return Bracket(low, at[low] if low in at else measure(low), at[low + 1] if low + 1 in at else measure(low + 1))


def _crossing(short: Callable[[int], bool], near: int, far: int) -> int:
    """The first k on the way from `near` to `far` that is not `short`, by bisection; `far` if all are."""
    if short(far):
        return far
    while abs(far - near) > 1:
        middle = (near + far) // 2
        near, far = (middle, far) if short(middle) else (near, middle)
    return far
