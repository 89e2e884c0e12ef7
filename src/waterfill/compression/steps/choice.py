"""The choice of one of several specs for each weight, where there are inputs: made once, at the budget's price.

`A | B` fits both specs each time. A network is fitted many times until it meets a budget, at prices close to one
another, so that it is enough to choose once.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from waterfill.compression.allocation.budget import Budget
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.store import MemoryStore
from waterfill.compression.task import Compression
from waterfill.part import Choice, Spec, cost, terms_of

MOST = 1 << 22
"""Entries of a weight; larger ones take the first spec, as fitting them several times would take too long."""


_MARGIN = 1.1  # of a cost that is known from a sample
_ROWS = 96  # of a matrix, on which a rival of the first spec has to win


def with_choice(weights: Sequence[Weight]) -> list[Weight]:
    """The weights; those whose spec is a choice have the first of its terms, free to take another of them."""
    return [replace(w, spec=terms_of(Choice, w.spec)[0], choice=_choice(w)) for w in weights]


def _choice(weight: Weight) -> Choice | None:
    """The choice that a weight has; None where its spec is none, or where it is too large to try several."""
    terms = terms_of(Choice, weight.spec)
    return Choice(terms) if len(terms) > 1 and weight.layout.entries <= MOST else None


def choose_kinds(work: Compression[MemoryStore], budget: Budget) -> None:
    """Give every weight of `work`, all made by `with_choice`, the spec with the lowest cost at the budget.

    Raises BudgetError where the smallest file is larger.
    """
    if all(weight.choice is None for weight in work.weights):
        return
    price = _price(work, budget)

    def chosen(weight: Weight) -> Weight:
        if weight.reason or weight.choice is None:
            return weight
        specs = weight.choice.terms
        rivals = [spec for spec in specs[1:] if _may_win(weight, spec, price)]
        totals = {spec: _cost(weight, spec, price) for spec in (specs[0], *rivals)} if rivals else {specs[0]: 0.0}
        best = min(totals, key=lambda spec: totals[spec])
        return weight if best is specs[0] else weight.with_spec(best)

    work.weights[:] = work.run.workers.map(lambda i: chosen(work.weights[i]), range(len(work.weights)))


def best_spec(weight: Weight, price: float, known: float) -> Spec:
    """The spec with the lowest cost for a weight at a price. known: D + price * bits of the first, nats.

    A rival has to win on some of the rows before all of them are fitted.
    """
    if weight.reason or weight.choice is None:
        return weight.spec
    specs = weight.choice.terms
    pairs = list(weight.matrices(price))
    rivals = [spec for spec in specs[1:] if any(spec.may_cost_less(*pair, price, known) for pair in pairs)]
    if rivals and weight.layout.count == 1:
        target, importance = pairs[0]
        rows = torch.arange(0, len(target), max(1, len(target) // _ROWS), dtype=torch.int64, device="cpu")
        some, own = target[rows], importance.select_rows(rows)
        first, *others = (cost(spec.fit(some, own, price), some, own, price) for spec in (specs[0], *rivals))
        rivals = [spec for spec, other in zip(rivals, others, strict=True) if other < first]
    totals = {specs[0]: known} | {spec: _cost(weight, spec, price) for spec in rivals}
    return min(totals, key=lambda spec: totals[spec])


def _price(work: Compression[MemoryStore], budget: Budget) -> float:
    """The price at which the budget is met, by the curves."""
    size = work.task.allowed(budget)
    if size is not None:
        return work.run.price_for(size)
    assert budget.price is not None  # a budget is a price or a size
    return budget.price


def _may_win(weight: Weight, spec: Spec, price: float) -> bool:
    """Whether a spec may be cheaper than the weight's own, whose cost its sample shows."""
    point = weight.curve.at(price)
    least = _MARGIN * (point.distortion + price * point.bits)
    if weight.layout.count > 1:
        return True
    return any(spec.may_cost_less(*pair, price, least) for pair in weight.matrices(price))


def _cost(weight: Weight, spec: Spec, price: float) -> float:
    """D + price * bits of all matrices of a weight, nats."""
    matrices = weight.matrices(price)
    return sum(cost(spec.fit(target, importance, price), target, importance, price) for target, importance in matrices)
