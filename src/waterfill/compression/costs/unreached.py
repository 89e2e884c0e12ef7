"""Importance from data, and what it makes of weights that the data say nothing about.

Measured and assumed costs have different units: D of the one is in relative errors of the outputs, of the other
in those of the weight.
One price serves both once the assumed ones are scaled by the median ratio on weights that were reached, of which both
are known. A weight that was not reached then gets the bits of a typical one of its size (docs/decisions.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from waterfill.compression.allocation.curve import water_level
from waterfill.compression.allocation.weight import Weight, assumed
from waterfill.network.layout import RAW, VECTOR

_MOST_COMPARED = 24  # weights of a kind that the median is taken of; their Gram matrices have to be factorized
_BITS = 2.0  # an entry: where most budgets lie


def at_common_price(weights: Sequence[Weight]) -> list[Weight]:
    """The weights, of which those without importance cost as much as a typical one of their size with it."""
    if all(weight.importance is not None or weight.layout.role == RAW for weight in weights):
        return list(weights)
    known = {kind: typical_factor([w for w in weights if _counts(w, kind)]) for kind in (True, False)}
    return [w if w.importance is not None else replace(w, factor=w.factor * _of(known, w)) for w in weights]


def _counts(weight: Weight, vector: bool) -> bool:
    """Whether both costs are known of a weight of this kind."""
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
            given = replace(weight.importance())  # its factor is not kept
            own = assumed(target, weight.layout, weight.lines).scaled(weight.factor)
            ratios.append(water_level(target, given, _BITS) - water_level(target, own, _BITS))
    return 2.0 ** float(np.median(ratios)) if ratios else None
