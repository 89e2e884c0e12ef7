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
        given = {k: v for k, v in vars(self).items() if v is not None}
        if len(given) > 1:
            raise BadRecipe(f"one budget at a time, not {' and '.join(given)}")
        for name, value in given.items():
            if not isinstance(value, Real):
                raise BudgetError(f"{name}={value!r} is a {type(value).__name__}; a budget is a positive number")
            if not 0 < float(value) < math.inf:
                raise BudgetError(f"{name}={value}: a budget is a positive number")

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
