"""Which of several specs each weight of a network takes, where there are inputs: decided once, at the budget's price.

`A | B` fits both wherever it is fitted. A network is fitted many times until it meets a budget, at prices that lie
close together, so it is enough to find out once what suits a weight, and to go on with that.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from waterfill.compression.allocation.budget import Budget
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.task import Compression
from waterfill.part import Spec, cost

MOST = 1 << 22
"""Entries of a weight; larger ones take the first spec, as fitting them several times would take too long."""


def settle_choices(work: Compression, specs: Sequence[Spec], target: Budget) -> None:
    """Give every weight of `work`, whose spec is the first of `specs`, the one that costs it least at the target."""
    if len(specs) == 1:
        return
    price = _price(work, target)

    def settled(weight: Weight) -> Weight:
        if weight.reason or weight.layout.entries > MOST:
            return weight
        totals = [_cost(weight, spec, price) for spec in specs]
        best = totals.index(min(totals))
        return replace(weight, spec=specs[best]) if best else weight

    with ThreadPoolExecutor(work.run.workers) as pool:
        work.weights[:] = pool.map(settled, work.weights)


def _price(work: Compression, target: Budget) -> float:
    """The price at which the target will be met, by the curves."""
    allowed = work.allowed(target)
    if allowed is not None:
        return work.run.price_for(allowed)
    assert target.price is not None  # a target is a price or a size
    return target.price


def _cost(weight: Weight, spec: Spec, price: float) -> float:
    """D + price * bits of all matrices of a weight, nats."""
    asked = weight.asked(price)
    return sum(cost(spec.fit(target, importance, price), target, importance, price) for target, importance in asked)
