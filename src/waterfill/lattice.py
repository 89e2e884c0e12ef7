"""What is known of a part that is nothing but codes times scales: enough to change its codes one by one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Lattice:
    """Integer codes that may be any others, times scales that stay.

    codes: [rows, cols]. row_scales: [rows, 1], float32, and col_scales: [cols]; their products restore an entry.
    with_codes: codes [rows, cols] -> the part of these, on the same scales.
    """

    codes: Tensor
    row_scales: Tensor
    col_scales: Tensor
    with_codes: Callable[[Tensor], Any]
