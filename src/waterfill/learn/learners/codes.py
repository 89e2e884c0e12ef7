"""Codes that follow positions: what straight-through training moves, and what comes of it."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from waterfill.errors import BadInput
from waterfill.part import Part
from waterfill.parts import Composition, Lattice

DEAD_ZONE = 2 * math.log(2) / 12
"""Price of a bit over the curvature of the loss, in squared steps: what high rates have (docs/theory.md)."""
_INSIDE = 0.45  # of a step: positions lie within so much of the middle of their code's range at first
_FARTHEST = 1 << 20  # that a code may be from zero
_LEAST_MEAN = 1e-3  # of the magnitude of codes in a row or column


@dataclass(eq=False)
class Matrix:
    """One matrix of codes.

    position [rows, cols]: on the axis of codes, what is trained; average: of late. slope [rows, cols]: bits that a code
    costs more for each step away from zero. scales: [rows, 1] and [cols], those of the lattice, beside it.
    """

    lattice: Lattice
    position: Tensor
    slope: Tensor
    scales: tuple[Tensor, Tensor]
    average: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.average = self.position.detach().clone()

    def codes(self, zone: float, *, average: bool = False) -> Tensor:
        """The codes [rows, cols] (float32) that are cheapest where the positions are now, or were on average."""
        position = self.average if average else self.position.detach()
        size = position.abs().sub_(self.slope, alpha=0.5 * zone).add_(0.5).floor_().clamp_min_(0)
        return size.mul_(position.sign())

    def restored(self, codes: Tensor) -> Tensor:
        return (codes * self.scales[0]).mul_(self.scales[1])

    def average_in(self, share: float) -> None:
        """Let the average be by this share where the positions are."""
        self.average.lerp_(self.position.detach(), share)

    def remeasure(self, codes: Tensor, share: float) -> None:
        """Let a share of the slopes be those of two-sided geometric densities by row and column of these codes."""
        size = codes.abs()
        whole = size.mean().clamp_min(_LEAST_MEAN)
        rows, cols = size.mean(1, keepdim=True), size.mean(0, keepdim=True)
        mean = (rows * cols / whole).clamp_min(_LEAST_MEAN)
        self.slope = torch.lerp(self.slope, -torch.log2(((1 + mean.square()).sqrt() - 1) / mean), share)

    def settle(self, codes: Tensor, zone: float) -> None:
        """Move positions to where these codes [rows, cols] are the cheapest, well inside: near to where one code ends
        and the next begins, many would change at once."""
        centers = codes + 0.5 * zone * self.slope * codes.sign()
        away = self.position - codes
        self.position.copy_(centers + _INSIDE * away / (0.5 + away.abs()))
        self.average.copy_(self.position)


@dataclass(eq=False)
class Composed:
    """A matrix of a weight: how it comes of its codes, and what it is now, from what gradients run through."""

    composition: Composition[Lattice, Part]
    matrices: list[Matrix]
    _sources: list[Tensor] = field(default_factory=list)
    _value: Tensor | None = None

    def restore(self, zone: float, *, average: bool = False) -> Tensor:
        """The matrix [rows, cols] of the codes that are cheapest now, or were on average."""
        found = [matrix.restored(matrix.codes(zone, average=average)) for matrix in self.matrices]
        if self.composition.plain:
            return found[0]
        self._sources = [one.requires_grad_() for one in found]
        with torch.enable_grad():
            self._value = self.composition.restore(self._sources)
        return self._value.detach()

    def slopes(self, gradient: Tensor) -> tuple[Tensor, ...]:
        """The gradient of the loss by each restored matrix of codes, from that by the whole."""
        if self.composition.plain:
            return (gradient,)
        if not self.matrices:
            return ()
        assert self._value is not None
        return torch.autograd.grad(self._value, self._sources, gradient.to(self._value), retain_graph=True)

    def part(self, zone: float, name: str, *, average: bool) -> Part:
        """The part of the codes that are cheapest now, or were on average. Raises BadInput for what no file holds."""
        found = [matrix.codes(zone, average=average).cpu() for matrix in self.matrices]
        if not all(bool((own.abs() <= _FARTHEST).all()) for own in found):  # NaN is not either
            raise BadInput(f"the codes of {name!r} have run away in training; lower the rate")
        codes = [own.to(torch.int32) for own in found]
        return self.composition.rebuilt(
            [m.lattice.with_codes(own) for m, own in zip(self.matrices, codes, strict=True)]
        )


def composed_at(composition: Composition[Lattice, Part], original: Tensor) -> Composed:
    """A matrix of codes; their positions are its own, original ones where it is nothing else than these codes."""
    return Composed(composition, [_matrix(one, original, composition.plain) for one in composition.leaves])


def _matrix(lattice: Lattice, original: Tensor, plain: bool) -> Matrix:
    """Codes, and positions at what they are or, if `plain`, at the original matrix that they stand for."""
    codes = lattice.codes.to(device=original.device, dtype=torch.float32)
    scales = lattice.row_scales.to(codes), lattice.col_scales.to(codes)
    position = torch.nan_to_num(original / (scales[0] * scales[1])) if plain else codes.clone()
    return Matrix(lattice, position.requires_grad_(), torch.ones_like(codes), scales)
