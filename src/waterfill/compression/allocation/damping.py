"""Choose the damping of a Gram matrix by two-fold cross-validation at the current price.

Feedback moves errors to where inputs have been small. How small they will be on other inputs, a few hundred do not tell
well, and the less the higher the price of bits, when errors are large: so the damping goes with the price. What errors
then cost on other inputs is more than on those that the codes were fitted to; weights for which it is much more get
more bits.
"""

import math
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from waterfill.importance import UNTESTED, Importance
from waterfill.parts import Quantize

DAMPINGS = tuple(10.0 ** (k / 2) for k in range(-6, 2))
"""What is tried, relative to the mean diagonal. Less is never safe: what was zero in both halves may not stay so."""
_ENTRIES_FITTED = 1 << 14
_FEWEST_ROWS_FITTED = 8
_MOST_EXCESS = 6.0  # of the cost on the held-out half, relative to that on the fitted one
_CODES = Quantize()


def damped(target: Tensor, importance: Importance, price: float) -> Importance:
    """The importance with the damping that suits a target [rows, cols] at a price; as it is where no halves are known.

    The costs D + price * bits are compared on the half that the codes were not fitted to, both halves in turn, from the
    middle of `DAMPINGS` downhill. The rows are scaled by what D was short of there: the excess is in proportion to the
    inverse of the number of inputs, so half of the excess between halves.
    """
    if importance.halves is None or target.numel() == 0:
        return importance
    count = max(_FEWEST_ROWS_FITTED, _ENTRIES_FITTED // target.shape[1])
    rows = torch.arange(0, target.shape[0], max(1, target.shape[0] // count), dtype=torch.int64, device="cpu")
    sampled, share = target[rows], replace(importance.select_rows(rows), halves=None)
    first, second = importance.halves

    @cache
    def tried(k: int) -> tuple[float, float]:
        total = excess = fitted_cost = 0.0
        for fitted, held_out in ((first, second), (second, first)):
            part = _CODES.fit(sampled, replace(share, gram=fitted, damping=DAMPINGS[k]), price)
            error = sampled - part.dense()
            own, other = (replace(share, gram=gram).distortion(error) for gram in (fitted, held_out))
            total += other + price * part.bits
            excess, fitted_cost = excess + other - own, fitted_cost + own
        return total, min(max(excess / fitted_cost if fitted_cost > 0 else 0.0, 0.0), _MOST_EXCESS)

    def cost(k: int) -> float:
        return tried(k)[0] if 0 <= k < len(DAMPINGS) else math.inf

    best = DAMPINGS.index(min(DAMPINGS, key=lambda d: abs(math.log(d / UNTESTED))))
    while True:
        step = min((best - 1, best + 1), key=cost)
        if cost(step) >= cost(best):
            return replace(importance, damping=DAMPINGS[best]).scaled(1 + tried(best)[1] / 2)
        best = step
