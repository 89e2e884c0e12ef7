"""The budget of a compression: bits per weight, bytes, a ratio or a price."""

import math
from dataclasses import dataclass
from numbers import Real

from waterfill.errors import BadRecipe, BudgetError
from waterfill.parts import PACKED


@dataclass(frozen=True)
class Budget:
    """What a compressed file has to meet, at most one of four; without any the caller chooses.

    Args:
        bits: per weight, of the whole file.
        size: bytes of the file.
        ratio: bytes of the original tensors over bytes of the file.
        price: the water level itself, nats per bit.

    Raises:
        BadRecipe: more than one of them.
        BudgetError: one that is no positive finite number.

    Example:
        >>> Budget(ratio=10).file_bytes(weights=1000, original=4000)
        400
    """

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
        """The budget that was given, by name: one entry or none."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def file_bytes(self, weights: int, original: int) -> int | None:
        """Bytes that the file may have; None where a price decides, or nothing was given.

        Args:
            weights: how many there are.
            original: bytes of the original tensors.

        Raises:
            BudgetError: bits per weight where there are no weights.
        """
        if self.bits is not None:
            if weights == 0:
                raise BudgetError(
                    f"bits={self.bits} per weight, and there are no weights; give size=, ratio= or price="
                )
            return int(self.bits * weights / 8)
        if self.ratio is not None:
            return int(original / self.ratio)
        return None if self.size is None else int(self.size)


IN_MEMORY = "{} bytes in memory where layers run from the compressed weights"
"""The remark in a file whose budget counts what its weights take there."""
IN_FORMAT = "about {} bytes in a file of {}"
"""The remark in a file whose budget counts what it takes in another format."""


def counted(size: int, runs: str | None) -> str:
    """The remark in a file whose budget counts what its weights take elsewhere; empty where `size` is 0."""
    if not size:
        return ""
    return IN_MEMORY.format(size) if runs in (None, PACKED) else IN_FORMAT.format(size, runs)


USED = 0.97
"""The share of a budget that a file uses at least, where the parts allow it."""


def unused(size: int, used: int) -> str | None:
    """The remark in a file of `used` bytes whose recipe could not use a budget of `size` bytes; None if it did."""
    return None if used >= USED * size else f"{size} bytes were allowed; this recipe could not use them all"
