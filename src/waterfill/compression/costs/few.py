"""Costs measured on few samples, shrunk toward the assumed ones.

Costs measured on a few images are noisy estimates of row weights, of correlations of columns and of the scales of
layers; where that noise is larger than the error of the assumed costs, these are the better estimate. The two are
averaged, the assumed ones with the weight of `PRIOR` samples (docs/decisions.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from waterfill.compression.allocation.curve import water_level
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.allocation.without_data import assumed
from waterfill.compression.costs.unreached import typical_factor
from waterfill.importance import Importance
from waterfill.network.layout import RAW, VECTOR

FEW = 64
"""With so many samples the measured costs are used alone."""
PRIOR = 2.0
"""Samples that the assumed costs count as."""
_BITS = 2.0  # an entry, at which water levels are compared
_TINY = 1e-300


def toward_assumed(weights: Sequence[Weight], samples: int) -> list[Weight]:
    """The weights with costs between those measured on so many samples and the assumed ones, in the measured unit.

    Only where the costs are in memory.
    """
    if not 0 < samples < FEW:
        return list(weights)
    share = samples / (samples + PRIOR)
    kinds = {vector: [w for w in weights if _measured(w) and (w.layout.role == VECTOR) == vector] for vector in (0, 1)}
    factors = {vector: typical_factor(members) for vector, members in kinds.items()}
    return [_shrunk(w, share, factors[w.layout.role == VECTOR]) if _measured(w) else w for w in weights]


def _measured(weight: Weight) -> bool:
    return weight.importance is not None and not weight.streamed and weight.layout.role != RAW


def _shrunk(weight: Weight, share: float, factor: float | None) -> Weight:
    target = weight.layout.split(weight.tensor())[0]
    if factor is None or weight.importance is None or not bool(target.any()):
        return weight
    measured = replace(weight.importance())
    prior = assumed(target, weight.layout, weight.lines).scaled(weight.factor * factor)
    mixed = _mixed(measured, prior, share, target.shape[1])
    levels = [water_level(target, one, _BITS) for one in (measured, prior, mixed)]
    level = share * levels[0] + (1 - share) * levels[1]
    return replace(weight, importance=_read(replace(mixed).scaled(2.0 ** (level - levels[2]))))


def _read(importance: Importance) -> Callable[[], Importance]:
    return partial(_same, importance)


def _same(importance: Importance) -> Importance:
    return importance


def _mixed(measured: Importance, prior: Importance, share: float, cols: int) -> Importance:
    """Weighted means of the rows and of the columns of two importances, each normalized to a mean of one."""

    def between(a: Tensor, b: Tensor) -> Tensor:
        a, b = (value / _mean(value).clamp_min(_TINY) for value in (a.double(), b.double()))
        return share * a + (1 - share) * b

    rows = between(measured.rows, prior.rows)
    if measured.gram is None:
        own = prior.diagonal if prior.gram is None else prior.gram.diagonal().repeat(cols // len(prior.gram))
        return replace(measured, rows=rows, diagonal=between(measured.diagonal, own).float())
    other = _whole(prior, len(measured.gram))
    halves = None
    if measured.halves is not None:
        halves = between(measured.halves[0], other).float(), between(measured.halves[1], other).float()
    return replace(measured, rows=rows, gram=between(measured.gram, other).float(), halves=halves)


def _mean(value: Tensor) -> Tensor:
    return value.diagonal().mean() if value.ndim == 2 else value.mean()


def _whole(prior: Importance, width: int) -> Tensor:
    """A of an assumed importance, [width, width]: the same for every channel, zero between channels."""
    if prior.gram is None:
        return torch.diag(prior.diagonal.double().expand(width))
    each = torch.eye(width // len(prior.gram), dtype=torch.float64, device="cpu")
    return torch.kron(each, prior.gram.double())
