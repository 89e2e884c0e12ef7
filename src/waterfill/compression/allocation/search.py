"""One price for all weights: the price at which a budget of bits is spent, and how to spend it exactly.

Every weight's curve is measured on a sample; the sum of the curves gives the price. Weights are then fitted from the
smallest to the largest, each at the price that the remaining budget and the remaining curves call for, so that what the
samples got wrong is shared by those that follow; the last and largest are fitted until the budget is met.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from waterfill.errors import BudgetError

DEAREST, CHEAPEST = 30, -30
"""Exponents of 4: beyond these prices nothing more is saved or bought."""
_STILL = 4  # so many prices in a row without a change are a plateau
_GROUP, _GROUPS = 4, 12


@contextmanager
def in_threads(workers: int) -> Iterator[Callable[..., Iterator[float]]]:
    """`map`, in so many threads; with one it is the caller's own, whose memory is used again."""
    if workers == 1:
        yield map
        return
    with ThreadPoolExecutor(workers) as pool:
        yield pool.map


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
    with in_threads(workers) as each:

        def measure(k: int) -> np.ndarray:
            return np.array(list(each(lambda i: measure_one(i, k), range(count))), dtype=np.float64)

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
