"""What few samples tell, beside what is assumed without any.

One image says little of which rows matter, which columns go together, and which layers outweigh others: measured costs
are noise around what many would tell, and where that noise is larger than the error of what is assumed, the assumption
is the better guide. So both count, the measured one as the samples, the assumed one as `PRIOR` of them
(docs/decisions.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from waterfill.compression.allocation.curve import water_level
from waterfill.compression.allocation.weight import Weight, assumed
from waterfill.compression.costs.unreached import typical_factor
from waterfill.importance import Importance
from waterfill.network.layout import RAW, VECTOR

FEW = 64
"""Samples from which on nothing is assumed beside them."""
PRIOR = 2.0
_BITS = 2.0  # an entry, at which water levels are compared
_TINY = 1e-300


def leaning(weights: Sequence[Weight], samples: int) -> list[Weight]:
    """The weights with costs between those measured on so many samples and those assumed, in the unit of the first.

    Only where the costs are in memory.
    """
    if not 0 < samples < FEW:
        return list(weights)
    share = samples / (samples + PRIOR)
    kinds = {vector: [w for w in weights if _measured(w) and (w.layout.role == VECTOR) == vector] for vector in (0, 1)}
    factors = {vector: typical_factor(members) for vector, members in kinds.items()}
    return [_leaning(w, share, factors[w.layout.role == VECTOR]) if _measured(w) else w for w in weights]


def _measured(weight: Weight) -> bool:
    return weight.importance is not None and not weight.streamed and weight.layout.role != RAW


def _leaning(weight: Weight, share: float, factor: float | None) -> Weight:
    target = weight.layout.split(weight.tensor())[0]
    if factor is None or weight.importance is None or not bool(target.any()):
        return weight
    given = replace(weight.importance())
    guess = assumed(target, weight.layout, weight.lines).scaled(weight.factor * factor)
    mixed = _mixed(given, guess, share, target.shape[1])
    levels = [water_level(target, one, _BITS) for one in (given, guess, mixed)]
    wanted = share * levels[0] + (1 - share) * levels[1]
    return replace(weight, importance=_read(replace(mixed).scaled(2.0 ** (wanted - levels[2]))))


def _read(importance: Importance) -> Callable[[], Importance]:
    return partial(_same, importance)


def _same(importance: Importance) -> Importance:
    return importance


def _mixed(given: Importance, guess: Importance, share: float, cols: int) -> Importance:
    """Rows and columns between those of two importances, each in the proportions it has by itself."""

    def between(a: Tensor, b: Tensor) -> Tensor:
        a, b = (value / _mean(value).clamp_min(_TINY) for value in (a.double(), b.double()))
        return share * a + (1 - share) * b

    rows = between(given.rows, guess.rows)
    if given.gram is None:
        own = guess.diagonal if guess.gram is None else guess.gram.diagonal().repeat(cols // len(guess.gram))
        return replace(given, rows=rows, diagonal=between(given.diagonal, own).float())
    other = _whole(guess, len(given.gram))
    halves = None
    if given.halves is not None:
        halves = between(given.halves[0], other).float(), between(given.halves[1], other).float()
    return replace(given, rows=rows, gram=between(given.gram, other).float(), halves=halves)


def _mean(value: Tensor) -> Tensor:
    return value.diagonal().mean() if value.ndim == 2 else value.mean()


def _whole(guess: Importance, width: int) -> Tensor:
    """A of a guess, [width, width]: the same for every channel, and nothing between them."""
    if guess.gram is None:
        return torch.diag(guess.diagonal.double().expand(width))
    each = torch.eye(width // len(guess.gram), dtype=torch.float64, device="cpu")
    return torch.kron(each, guess.gram.double())
