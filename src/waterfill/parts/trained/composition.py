"""A part as a function of something in it that may change, such as its codes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, pairwise
from typing import Generic, TypeVar

import torch
from torch import Tensor

from waterfill.part import Part, SumPart
from waterfill.parts.lowrank import LowRankPart
from waterfill.parts.sparse import SparsePart

Leaf = TypeVar("Leaf")
Given = TypeVar("Given")


@dataclass(frozen=True, eq=False)
class Composition(Generic[Leaf, Given]):
    """A part as a function of its leaves, which are what may change in it.

    restore: a tensor for each leaf, in order -> the matrix of the part, on their device; gradients run through.
    rebuilt: what each leaf is made of, in order -> the part. plain: whether the part is a leaf and nothing else.
    """

    leaves: tuple[Leaf, ...]
    restore: Callable[[Sequence[Tensor]], Tensor]
    rebuilt: Callable[[Sequence[Given]], Part]
    plain: bool = False


LeafOf = Callable[[Part, bool], Composition[Leaf, Given] | None]
"""(a part without parts in it, whether it is in another) -> it as a function of what may change; None where nothing
does."""


def composed(part: Part, leaf_of: LeafOf[Leaf, Given], *, inner: bool = False) -> Composition[Leaf, Given]:
    """A part as a function of all leaves in it; everything else is constant. inner: whether it is in another part."""
    if isinstance(part, LowRankPart) and part.factors:
        children, restore = part.factors, _product
        return _joined(children, leaf_of, restore, lambda found: replace(part, factors=(found[0], found[1])))
    if isinstance(part, SparsePart) and part.values is not None:
        return _joined((part.values,), leaf_of, _scatter(part), lambda found: replace(part, values=found[0]))
    if isinstance(part, SumPart):
        return _joined(part.terms, leaf_of, _sum, lambda found: replace(part, terms=tuple(found)), inner=inner)
    found = leaf_of(part, inner)
    if found is not None:
        return found
    value = part.dense().float()
    return Composition((), lambda _: value, lambda _: part)


def _joined(
    children: Sequence[Part],
    leaf_of: LeafOf[Leaf, Given],
    restore: Callable[[Sequence[Tensor]], Tensor],
    rebuilt: Callable[[Sequence[Part]], Part],
    *,
    inner: bool = True,
) -> Composition[Leaf, Given]:
    """The composition of a part from those of its children. restore: their matrices -> that of the part."""
    found = [composed(child, leaf_of, inner=inner) for child in children]
    bounds = list(pairwise(accumulate((len(one.leaves) for one in found), initial=0)))

    def matrix(given: Sequence[Tensor]) -> Tensor:
        values = [one.restore(given[a:b]) for one, (a, b) in zip(found, bounds, strict=True)]
        return restore([value.to(given[0]) for value in values] if given else values)

    def whole(given: Sequence[Given]) -> Part:
        return rebuilt([one.rebuilt(given[a:b]) for one, (a, b) in zip(found, bounds, strict=True)])

    return Composition(tuple(leaf for one in found for leaf in one.leaves), matrix, whole)


def _product(found: Sequence[Tensor]) -> Tensor:
    return found[0] @ found[1]


def _sum(found: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(found)).sum(0)


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
