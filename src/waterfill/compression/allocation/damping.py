"""Choose the damping of a Gram matrix by two-fold cross-validation at the current price.

Error feedback (GPTQ) moves errors into directions in which the inputs were small. How small they are on other inputs is
poorly estimated from a few hundred, which matters more at a high price, when errors are large: so the damping depends
on the price. On held-out inputs errors cost more than on those that the codes were fitted to; weights for which it is
much more get more bits.
"""

import math
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from waterfill.importance import UNTESTED, Importance
from waterfill.parts import Quantize

DAMPINGS = tuple(10.0 ** (k / 2) for k in range(-6, 2))
"""The dampings to try, relative to the mean diagonal. Less is never safe: an input that was zero in both halves may not
be zero in others."""
_ENTRIES_FITTED = 1 << 14
_FEWEST_ROWS_FITTED = 8
_MOST_EXCESS = 6.0  # of the cost on the held-out half, relative to that on the fitted one
_CODES = Quantize()


def damped(target: Tensor, importance: Importance, price: float) -> Importance:
    """The importance with the damping that is best for a target [rows, cols] at a price; unchanged without halves.

    The costs D + price * bits are compared on the half that the codes were not fitted to, both halves in turn, by
    descent from the middle of `DAMPINGS`. The rows are scaled up by the relative excess of D on the held-out half: it
    is inversely proportional to the number of inputs, so by half of the excess between halves.
    """
    if importance.halves is None or target.numel() == 0:
        return importance
    count = max(_FEWEST_ROWS_FITTED, _ENTRIES_FITTED // target.shape[1])
    rows = torch.arange(0, target.shape[0], max(1, target.shape[0] // count), dtype=torch.int64, device="cpu")
    sampled, share = target[rows], replace(importance.select_rows(rows), halves=None)
    first, second = (replace(share, gram=gram) for gram in importance.halves)

    @cache
    def tried(k: int) -> tuple[float, float]:
        total = excess = fitted_cost = 0.0
        for fitted, held_out in ((first, second), (second, first)):
            part = _CODES.fit(sampled, fitted.damped_by(DAMPINGS[k]), price)
            error = sampled - part.dense()
            own, other = fitted.distortion(error), held_out.distortion(error)
            total += other + price * part.bits
            excess, fitted_cost = excess + other - own, fitted_cost + own
        return total, min(max(excess / fitted_cost if fitted_cost > 0 else 0.0, 0.0), _MOST_EXCESS)

    def cost(k: int) -> float:
        return tried(k)[0] if 0 <= k < len(DAMPINGS) else math.inf

    best = DAMPINGS.index(min(DAMPINGS, key=lambda d: abs(math.log(d / UNTESTED))))
    while True:
        step = min((best - 1, best + 1), key=cost)
        if cost(step) >= cost(best):
            return importance.damped_by(DAMPINGS[best]).scaled(1 + tried(best)[1] / 2)
        best = step
