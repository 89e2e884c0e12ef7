"""What a compression has to meet."""

import math
from dataclasses import dataclass
from numbers import Real

from waterfill.errors import BadRecipe, BudgetError


@dataclass(frozen=True)
class Budget:
    """What to meet, at most one of: bits per weight of the whole file, its size in bytes, the ratio to the original
    tensors' bytes, or the price in nats per bit."""

    bits: float | None = None
    size: int | None = None
    ratio: float | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        if len(self.given) > 1:
            raise BadRecipe(f"one budget at a time, not {' and '.join(self.given)}")
        for name, value in self.given.items():
            if not isinstance(value, Real):
                raise BudgetError(f"{name}={value!r} is a {type(value).__name__}; a budget is a positive number")
            if not 0 < float(value) < math.inf:
                raise BudgetError(f"{name}={value}: a budget is a positive number")

    @property
    def given(self) -> dict[str, float]:
        """What was given, by name: one entry or none."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def file_bytes(self, weights: int, original: int) -> int | None:
        """The size that the file may have; None where a price decides."""
        if self.bits is not None:
            if weights == 0:
                raise BudgetError(
                    f"bits={self.bits} per weight, and there are no weights; give size=, ratio= or price="
                )
            return int(self.bits * weights / 8)
        if self.ratio is not None:
            return int(original / self.ratio)
        return None if self.size is None else int(self.size)


USED = 0.97
"""The share of a budget below which it is not used, where the parts allow it."""


def unused(size: int, used: int) -> str | None:
    """What a file of `used` bytes says of a budget of `size` bytes that the recipe could not use; None if it did."""
    return None if used >= USED * size else f"{size} bytes were allowed; this recipe could not use them all"
