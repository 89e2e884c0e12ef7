"""Importance from data, and what it makes of weights that the data say nothing about.

Measured, D is in squared outputs; assumed, in relative errors. One price cannot serve both unless one is brought to the
unit of the other: on weights that were reached both are known, and a typical ratio of them is what the assumption is
multiplied by. A weight that was not reached then gets the bits of a typical one of its size (docs/why.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from waterfill.compression.allocation.weight import Weight, assumed
from waterfill.importance import Importance
from waterfill.network.layout import RAW, VECTOR

_COMPARED = 24  # weights of a kind that the typical ratio is taken from; their Gram matrices have to be factorized
_BITS = 2.0  # an entry: where most budgets lie
_QUANTILES = 128
_HALVINGS = 30
_LEAST = 1e-60


def at_common_price(weights: Sequence[Weight]) -> list[Weight]:
    """The weights, of which those without importance cost as much as a typical one of their size with it."""
    if all(weight.importance is not None or weight.layout.role == RAW for weight in weights):
        return list(weights)
    known = {kind: _factor([w for w in weights if _counts(w, kind)]) for kind in (True, False)}
    return [w if w.importance is not None else replace(w, factor=_of(known, w)) for w in weights]


def _counts(weight: Weight, vector: bool) -> bool:
    """Whether both costs are known of a weight of this kind."""
    return weight.importance is not None and (weight.layout.role == VECTOR) == vector


def _of(known: Mapping[bool, float | None], weight: Weight) -> float:
    vector = weight.layout.role == VECTOR
    return known[vector] or known[not vector] or 1.0


def _factor(weights: Sequence[Weight]) -> float | None:
    """The median of measured over assumed costs; None where there is nothing to compare."""
    ratios = []
    for weight in weights[:: max(1, len(weights) // _COMPARED)]:
        target = weight.layout.split(weight.tensor())[0]
        if bool(target.any()):
            given = weight.importance() if callable(weight.importance) else weight.importance
            assert given is not None
            ratios.append(_level(target, given) - _level(target, assumed(target, weight.layout)))
    return 2.0 ** float(np.median(ratios)) if ratios else None


def _level(target: Tensor, importance: Importance) -> float:
    """The logarithm to base 2 of the water level at which the entries of a matrix spend `_BITS` each.

    An entry spends 1/2 log2 of its variance over the level, by rows and columns, and none if that is negative.
    """
    if importance.gram is None:
        columns = importance.diagonal.double().expand(target.shape[1])
    else:
        factor = replace(importance).lower  # not kept with the importance
        assert factor is not None
        columns = torch.from_numpy(np.diag(factor).astype(np.float64)).square()
        columns = columns.repeat(target.shape[1] // len(columns))
    rows = importance.rows.double() * target.double().square().mean(1)
    if target.shape[0] == 1:  # a vector: each entry by itself
        rows, columns = importance.rows.double().reshape(-1)[:1], columns * target[0].double().square()
    heights = (_spread(rows)[:, None] + _spread(columns)[None]).reshape(-1).numpy()
    low, high = float(heights.min()) - 2 * _BITS, float(heights.max())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = np.maximum(heights - middle, 0).mean() / 2 > _BITS
        low, high = (middle, high) if above else (low, middle)
    return high


def _spread(values: Tensor) -> Tensor:
    """Logarithms to base 2 of values, of many ones evenly spread quantiles."""
    ordered = values.clamp_min(_LEAST).log2().sort().values
    return ordered[:: max(1, len(ordered) // _QUANTILES)]
