"""What is known of a part that is nothing but codes times scales: enough to change its codes one by one."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from waterfill.part import Part
from waterfill.parts.quantized import QuantizedPart


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


def lattice_of(part: Part) -> Lattice | None:
    """The codes and scales of a part that is nothing else; None for all others, those along a trellis among them."""
    if not isinstance(part, QuantizedPart) or part.states:
        return None
    return Lattice(part.codes, *part.scales, part.with_codes)
