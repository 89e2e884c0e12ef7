"""How far to trust a Gram matrix: the damping under which codes fitted to one half of the inputs serve the other best.

Feedback moves errors to where inputs have been small. How small they will be on other inputs, a few hundred do not tell
well, and the less the dearer bits are, when errors are large: so the damping goes with the price.
"""

import math
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from waterfill import recipe
from waterfill.importance import Importance
from waterfill.part import Spec

DAMPINGS = tuple(10.0 ** (k / 2) for k in range(-6, 2))
"""What is tried, relative to the mean diagonal. Less is never safe: what was silent in both halves may yet speak."""
UNTESTED = 10.0**-1.5
"""Where nothing was held out."""
_ENTRIES = 1 << 14  # of the rows that it is tried on
_LEAST = 8  # rows


@cache
def _codes() -> Spec:
    return recipe.parse("Quantize()")


def damped(target: Tensor, importance: Importance, price: float) -> Importance:
    """The importance with the damping that suits a target [rows, cols] at a price; as it is where no halves are known.

    The costs D + price * bits are compared on the half that the codes were not fitted to, both halves in turn, from the
    middle of `DAMPINGS` downhill.
    """
    if importance.halves is None or target.numel() == 0:
        return importance
    rows = max(_LEAST, _ENTRIES // target.shape[1])
    some = torch.arange(0, target.shape[0], max(1, target.shape[0] // rows))
    seen, share = target[some], replace(importance.select_rows(some), halves=None)
    first, second = importance.halves

    @cache
    def cost(k: int) -> float:
        if not 0 <= k < len(DAMPINGS):
            return math.inf
        total = 0.0
        for fitted, held in ((first, second), (second, first)):
            part = _codes().fit(seen, replace(share, gram=fitted, damping=DAMPINGS[k]), price)
            total += replace(share, gram=held).distortion(seen - part.dense()) + price * part.bits
        return total

    best = DAMPINGS.index(min(DAMPINGS, key=lambda d: abs(math.log(d / UNTESTED))))
    while True:
        step = min((best - 1, best + 1), key=cost)
        if cost(step) >= cost(best):
            return replace(importance, damping=DAMPINGS[best])
        best = step
