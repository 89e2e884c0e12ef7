"""Assumed costs of weights that no input reached, scaled to the unit of the measured ones.

Measured and assumed costs have different units: relative errors of the outputs, and relative errors of the weight. The
assumed ones are scaled by the median ratio of both on weights that were reached, so that one price serves all. A weight
that was not reached then gets the bits of a typical one of its size (docs/decisions.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from waterfill.compression.allocation.curve import water_level
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.allocation.without_data import assumed
from waterfill.network.layout import RAW, VECTOR

_MOST_COMPARED = 24  # weights of a kind in the median; their Gram matrices have to be factorized
_BITS = 2.0  # an entry: where most budgets lie


def at_common_price(weights: Sequence[Weight]) -> list[Weight]:
    """The weights; those without importance cost as much as a typical one of their size that has it."""
    if all(weight.importance is not None or weight.layout.role == RAW for weight in weights):
        return list(weights)
    known = {kind: typical_factor([w for w in weights if _counts(w, kind)]) for kind in (True, False)}
    return [w if w.importance is not None else replace(w, factor=w.factor * _of(known, w)) for w in weights]


def _counts(weight: Weight, vector: bool) -> bool:
    """Whether a weight is of this kind, and both of its costs are known."""
    return weight.importance is not None and (weight.layout.role == VECTOR) == vector


def _of(known: Mapping[bool, float | None], weight: Weight) -> float:
    vector = weight.layout.role == VECTOR
    return known[vector] or known[not vector] or 1.0


def typical_factor(weights: Sequence[Weight]) -> float | None:
    """The median of measured over assumed costs, by their water levels; None where there is nothing to compare."""
    ratios = []
    for weight in weights[:: max(1, len(weights) // _MOST_COMPARED)]:
        target = weight.layout.split(weight.tensor())[0]
        if bool(target.any()):
            assert weight.importance is not None
            measured = replace(weight.importance())  # a copy, so that its cached factor is not kept
            assumed_costs = assumed(target, weight.layout, weight.lines).scaled(weight.factor)
            ratios.append(water_level(target, measured, _BITS) - water_level(target, assumed_costs, _BITS))
    return 2.0 ** float(np.median(ratios)) if ratios else None
