"""How the penalty of the LC algorithm grows."""

import math
from dataclasses import dataclass

from waterfill.errors import BadRecipe


@dataclass(frozen=True)
class Schedule:
    """How the penalty grows.

    mu: its first weight; None: it is found by `LC.start`. growth: its factor after each C step. multipliers: whether
    the Lagrangian is augmented; without them the penalty is quadratic.

    Raises BadRecipe for weights that are not positive and a growth below 1.
    """

    mu: float | None = None
    growth: float = 1.1
    multipliers: bool = True

    def __post_init__(self) -> None:
        if not (self.mu is None or 0 < self.mu < math.inf) or not 1 <= self.growth < math.inf:
            raise BadRecipe(f"{self}: mu is positive, growth is 1 or more")


DEFAULT_SCHEDULE = Schedule()
