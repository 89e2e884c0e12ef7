"""What a part is made of: integer codes that may be changed one by one, and how its matrix comes of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from waterfill.part import Part, SumPart
from waterfill.parts.lowrank import LowRankPart
from waterfill.parts.quantized import QuantizedPart
from waterfill.parts.sparse import SparsePart


@dataclass(frozen=True, eq=False)
class Lattice:
    """Integer codes that may be any others, times scales that stay.

    codes: [rows, cols]. row_scales: [rows, 1], float32, and col_scales: [cols]; their products restore an entry.
    with_codes: codes [rows, cols] -> the part of these, on the same scales.
    """

    codes: Tensor
    row_scales: Tensor
    col_scales: Tensor
    with_codes: Callable[[Tensor], Part]


@dataclass(frozen=True, eq=False)
class Composition:
    """A part as a function of the lattices in it.

    restore: the matrices of the lattices, in order -> that of the part, on their device; gradients run through.
    rebuilt: the parts of the lattices, in order -> the part. plain: whether the part is a lattice and nothing else.
    """

    lattices: tuple[Lattice, ...]
    restore: Callable[[Sequence[Tensor]], Tensor]
    rebuilt: Callable[[Sequence[Part]], Part]
    plain: bool = False


def composed(part: Part) -> Composition:
    """The codes in a part, and how its matrix comes of them; codes along a trellis, and all else, are constants."""
    if isinstance(part, QuantizedPart) and not part.states:
        lattice = Lattice(part.codes, *part.scales, part.with_codes)
        return Composition((lattice,), lambda found: found[0], lambda found: found[0], plain=True)
    if isinstance(part, LowRankPart) and part.factors:
        return _joined(
            part.factors, lambda found: found[0] @ found[1], lambda found: replace(part, factors=(found[0], found[1]))
        )
    if isinstance(part, SparsePart) and part.values is not None:
        return _joined((part.values,), _scatter(part), lambda found: replace(part, values=found[0]))
    if isinstance(part, SumPart):
        return _joined(
            part.terms, lambda found: torch.stack(list(found)).sum(0), lambda found: replace(part, terms=tuple(found))
        )
    value = part.dense().float()
    return Composition((), lambda _: value, lambda _: part)


def _joined(
    children: Sequence[Part], restore: Callable[[Sequence[Tensor]], Tensor], rebuilt: Callable[[Sequence[Part]], Part]
) -> Composition:
    """The composition of a part from those of its children. restore: their matrices -> that of the part."""
    found = [composed(child) for child in children]
    bounds = list(pairwise(accumulate((len(one.lattices) for one in found), initial=0)))

    def matrix(given: Sequence[Tensor]) -> Tensor:
        values = [one.restore(given[a:b]) for one, (a, b) in zip(found, bounds, strict=True)]
        return restore([value.to(given[0]) for value in values] if given else values)

    def whole(given: Sequence[Part]) -> Part:
        return rebuilt([one.rebuilt(given[a:b]) for one, (a, b) in zip(found, bounds, strict=True)])

    return Composition(tuple(lattice for one in found for lattice in one.lattices), matrix, whole)


def _scatter(part: SparsePart) -> Callable[[Sequence[Tensor]], Tensor]:
    """The matrix of a sparse part from its values."""
    assert part.values is not None
    count = part.values.shape[0] * part.values.shape[1]
    numbers = torch.arange(1, count + 1, dtype=torch.float64, device="cpu").reshape(part.values.shape)
    where = part.pattern.scatter(numbers, part.mask, part.shape).flatten()
    places = where.nonzero()[:, 0]
    order = where[places].long() - 1

    @cache
    def on(device: torch.device) -> tuple[Tensor, Tensor]:
        return places.to(device), order.to(device)

    def restore(found: Sequence[Tensor]) -> Tensor:
        here, ordered = on(found[0].device)
        values = found[0].flatten()[ordered]
        empty = values.new_zeros(part.shape[0] * part.shape[1])
        return empty.index_put((here,), values).reshape(part.shape)

    return restore
