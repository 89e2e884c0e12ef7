"""Weights that have only a few sizes each: of all ways to share a budget out among them the one of least distortion.

Codes for packed layers take 2, 3, 4 ... bits each, so that a curve is a few points far apart. One price then leaves
much of a budget unused where a few weights are most of it: a multiple-choice knapsack does better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from waterfill.compression.allocation.to_size.smallest import Trials
from waterfill.compression.allocation.weight import Weight
from waterfill.parts import counts_memory

_MOST = 128  # weights; with more of them one price for all is as good
_UNITS = 256  # of the budget, for each weight: sizes are rounded up to one
_AROUND, _WIDEST = 2, 8  # factors of 4 in the price, beyond all of those that weights have; and from their middle
_ALIKE = 0.01  # relative difference of sizes that are the same
_TRIES = 6  # until the sizes that were predicted are the real ones
_WORTH = 0.99  # of the distortion; what is not below is not worth another fit


@dataclass(frozen=True)
class Option:
    """A size that a weight may have: the price at which it has it, bits, and distortion (nats)."""

    price: float
    bits: float
    loss: float


def few_sized(weights: Sequence[Weight]) -> list[int]:
    """The weights that have few sizes, if they are few enough for `share_out`."""
    some = [i for i, weight in enumerate(weights) if counts_memory(weight.chosen_spec)]
    return some if len(some) <= _MOST else []


def share_out(weights: Sequence[Weight], trials: Trials, size: int) -> None:
    """Fit weights that have few sizes again so that the file has at most `size` bytes and all of them lose the least.

    Nothing changes where there are none, or where nothing better is found.
    """
    ledger, some = trials.ledger, few_sized(weights)
    if not some:
        return
    before = {i: Option(ledger.prices[i], ledger.bits[i], 0.0) for i in some}
    prices = _prices([one.price for one in before.values()])
    options, own = {i: _options(weights[i], before[i], prices) for i in some}, dict.fromkeys(some, 0)
    fits = trials.file_bytes(ledger) <= size
    least = sum(options[i][0].loss for i in some) if fits else math.inf
    room = 8.0 * (size - trials.file_bytes(ledger)) + sum(one.bits for one in before.values())
    for _ in range(_TRIES):
        found = cheapest([options[i] for i in some], room)
        if found is None or sum(options[i][k].loss for i, k in zip(some, found, strict=True)) >= _WORTH * least:
            break
        for i, k in zip(some, found, strict=True):
            if k != own[i]:
                trials.refit(i, options[i][k].price)
                own[i], options[i][k] = k, replace(options[i][k], bits=ledger.bits[i])
        if trials.file_bytes(ledger) <= size:
            return
    for i in some if fits else ():
        if own[i]:
            trials.refit(i, before[i].price)


def _prices(own: Sequence[float]) -> range:
    """The exponents of 4 around the prices that weights have."""
    logs = sorted(round(math.log(price, 4)) for price in own)
    middle = logs[len(logs) // 2]
    return range(max(logs[0] - _AROUND, middle - _WIDEST), min(logs[-1] + _AROUND, middle + _WIDEST) + 1)


def _options(weight: Weight, now: Option, prices: range) -> list[Option]:
    """The sizes of a weight at prices 4^k, that which it has first."""
    found = list[Option]()
    for price, point in ((4.0**k, weight.curve.at_grid(k)) for k in prices):
        if all(abs(point.bits - one.bits) > _ALIKE * one.bits for one in found):
            found.append(Option(price, point.bits, point.distortion))
    own = min(found, key=lambda one: abs(math.log(max(one.bits, 1.0) / max(now.bits, 1.0))))
    return [replace(now, loss=own.loss), *(one for one in found if one is not own)]


def cheapest(options: Sequence[Sequence[Option]], room: float) -> list[int] | None:
    """The choice of one option for each weight with the least sum of losses whose bits sum to at most `room`.

    By dynamic programming; bits are rounded up to a fine unit. None where nothing fits.
    """
    count = _UNITS * len(options)
    unit = room / count
    if unit <= 0:
        return None
    least, taken = np.zeros(count + 1), list[np.ndarray]()  # by units that may be spent
    for own in options:
        tried = np.full((len(own), count + 1), np.inf)
        for k, option in enumerate(own):
            needed = math.ceil(option.bits / unit - 1e-9)
            if needed <= count:
                tried[k, needed:] = least[: count + 1 - needed] + option.loss
        taken.append(tried.argmin(0).astype(np.int16))
        least = tried.min(0)
    if not math.isfinite(least[-1]):
        return None
    left, chosen = count, list[int]()
    for own, best in zip(reversed(options), reversed(taken), strict=True):
        k = int(best[left])
        chosen.append(k)
        left -= math.ceil(own[k].bits / unit - 1e-9)
    return chosen[::-1]
