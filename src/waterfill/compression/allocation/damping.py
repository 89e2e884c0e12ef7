"""How far to trust a Gram matrix: the damping under which codes fitted to one half of the inputs serve the other best.

Feedback moves errors to where inputs have been small. How small they will be on other inputs, a few hundred do not tell
well, and the less the dearer bits are, when errors are large: so the damping goes with the price. What errors then cost
on other inputs is more than on those that the codes were fitted to; weights for which it is much more get more bits.
"""

import math
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from waterfill.importance import UNTESTED, Importance
from waterfill.part import Spec
from waterfill.parts import Quantize

DAMPINGS = tuple(10.0 ** (k / 2) for k in range(-6, 2))
"""What is tried, relative to the mean diagonal. Less is never safe: what was silent in both halves may yet speak."""
_ENTRIES = 1 << 14  # of the rows that it is tried on
_LEAST = 8  # rows
_MOST_EXCESS = 6.0


@cache
def _codes() -> Spec:
    return Quantize()


def damped(target: Tensor, importance: Importance, price: float) -> Importance:
    """The importance with the damping that suits a target [rows, cols] at a price; as it is where no halves are known.

    The costs D + price * bits are compared on the half that the codes were not fitted to, both halves in turn, from the
    middle of `DAMPINGS` downhill. The rows are scaled by what D was short of there: the excess is in proportion to the
    inverse of the number of inputs, so half of what was found on halves.
    """
    if importance.halves is None or target.numel() == 0:
        return importance
    rows = max(_LEAST, _ENTRIES // target.shape[1])
    some = torch.arange(0, target.shape[0], max(1, target.shape[0] // rows), dtype=torch.int64, device="cpu")
    seen, share = target[some], replace(importance.select_rows(some), halves=None)
    first, second = importance.halves

    @cache
    def tried(k: int) -> tuple[float, float]:
        total = excess = seen_cost = 0.0
        for fitted, held in ((first, second), (second, first)):
            part = _codes().fit(seen, replace(share, gram=fitted, damping=DAMPINGS[k]), price)
            error = seen - part.dense()
            own, other = (replace(share, gram=gram).distortion(error) for gram in (fitted, held))
            total += other + price * part.bits
            excess, seen_cost = excess + other - own, seen_cost + own
        return total, min(max(excess / seen_cost if seen_cost > 0 else 0.0, 0.0), _MOST_EXCESS)

    def cost(k: int) -> float:
        return tried(k)[0] if 0 <= k < len(DAMPINGS) else math.inf

    best = DAMPINGS.index(min(DAMPINGS, key=lambda d: abs(math.log(d / UNTESTED))))
    while True:
        step = min((best - 1, best + 1), key=cost)
        if cost(step) >= cost(best):
            return replace(importance, damping=DAMPINGS[best]).scaled(1 + tried(best)[1] / 2)
        best = step
