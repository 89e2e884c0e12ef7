"""How channels are pruned."""

from collections.abc import Callable
from dataclasses import dataclass

from waterfill.errors import BadRecipe
from waterfill.progress import Progress


@dataclass(frozen=True)
class Pruning:
    """How channels are chosen and made up for.

    Args:
        rounds: how often: in each a part goes, the rest is fitted, and what channels are worth is measured anew.
        multiple: the channels that stay come in multiples of it, where there are so many. None: 8 where a speedup is
            wanted and can be met so, as convolutions of other numbers can take longer than those of more; else 1.
        refit: whether the weights that stay are fitted to make up for what went.
        damping: how much the fit holds on to the weights as they are, relative to the variance of their inputs.
        batch: how many inputs at once a speedup is measured with.
        progress: called after each round.

    Raises:
        BadRecipe: for numbers that make no sense.
    """

    rounds: int = 4
    multiple: int | None = None
    refit: bool = True
    damping: float = 1e-3
    batch: int = 1
    progress: Callable[[Progress], None] | None = None

    def __post_init__(self) -> None:
        if (
            self.rounds < 1
            or (self.multiple is not None and self.multiple < 1)
            or self.batch < 1
            or not self.damping > 0
        ):
            raise BadRecipe(f"{self}: rounds, multiple and batch are 1 or more, damping is positive")
