"""Integer codes in a part that may be changed one by one, on scales that stay."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from waterfill.part import Part
from waterfill.parts.quantized import QuantizedPart
from waterfill.parts.trained.composition import Composition, composed


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


def by_codes(part: Part) -> Composition[Lattice, Part]:
    """A part as a function of the matrices of its codes; codes along a trellis, and all else, are constants."""
    return composed(part, _lattice)


def _lattice(part: Part, inner: bool) -> Composition[Lattice, Part] | None:
    if not isinstance(part, QuantizedPart) or part.states:
        return None
    lattice = Lattice(part.codes, *part.scales, part.with_codes)
    return Composition((lattice,), lambda found: found[0], lambda found: found[0], plain=True)
