"""How a network is trained."""

import math
from dataclasses import dataclass

from waterfill.errors import BadRecipe
from waterfill.learn.learners.schedule import Schedule

_RATE, _LC_RATE = 4e-3, 0.01
STRAIGHT_THROUGH, LC_STEPS = "straight-through", "lc"


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Args:
        epochs: passes through the batches.
        rate: the learning rate at first, which falls to zero: of Adam in steps of codes (straight-through), of SGD
            (lc); None: 0.004 and 0.01.
        c_steps: how often in an epoch what was learned is compressed and a snapshot is written.
        last: share of the steps in which codes are frozen, and scales, levels, kept entries and vectors learn.
        method: "straight-through": codes that follow the weights; "lc": the LC algorithm.
        schedule: of the LC algorithm; None: mu begins at a thousandth of the curvature and rises a thousandfold.
        features: without a loss of your own: how much the error of what the network sees inside, stage by stage and
            relative to its variance, counts beside its outputs.
        temperature: without a loss of your own: that at which outputs are compared; None for that of `Imitation`.
        seed: of the order of batches.
        bfloat16: whether the network runs in bfloat16 where PyTorch takes that for safe.

    Raises:
        BadRecipe: for numbers that make no sense.
    """

    epochs: float = 3.0
    rate: float | None = None
    c_steps: int = 8
    last: float = 0.1
    method: str = STRAIGHT_THROUGH
    schedule: Schedule | None = None
    features: float = 0.0
    temperature: float | None = None
    seed: int = 0
    bfloat16: bool = False

    @property
    def first_rate(self) -> float:
        """The learning rate at first."""
        return self.rate if self.rate is not None else _LC_RATE if self.method == LC_STEPS else _RATE

    def __post_init__(self) -> None:
        if self.method not in (STRAIGHT_THROUGH, LC_STEPS):
            raise BadRecipe(f"method={self.method!r} is neither {STRAIGHT_THROUGH!r} nor {LC_STEPS!r}")
        numbers = 0 < self.epochs < math.inf and 0 < self.first_rate < math.inf and 0 <= self.features < math.inf
        warm = self.temperature is None or 0 < self.temperature < math.inf
        if not (numbers and warm and self.c_steps >= 1 and 0 <= self.last < 1):
            raise BadRecipe(
                f"{self}: epochs, rate and temperature are positive, c_steps is 1 or more, last is from 0 to below 1, "
                "and features are not negative"
            )
