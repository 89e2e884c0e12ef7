"""How channels are pruned."""

import math
from dataclasses import dataclass

from waterfill.errors import BadRecipe
from waterfill.progress import Report


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
        blocks: whether whole blocks may go, such as those of a residual network, with all their calls. None: where a
            speedup is wanted, as it is calls that take time where few inputs come at once.
        fold: whether batch norms go into the layers before them at last, and in what is timed, as `fold_norms` does it.
            Networks that are to be trained after are better folded after that.
        progress: called with a `Progress` after each round. None shows a bar in a terminal or a notebook, False none,
            True one everywhere.

    Raises:
        BadRecipe: for numbers that make no sense.
    """

    rounds: int = 4
    multiple: int | None = None
    refit: bool = True
    damping: float = 1e-3
    batch: int = 1
    blocks: bool | None = None
    fold: bool = False
    progress: Report | bool | None = None

    def __post_init__(self) -> None:
        counts = {"rounds": self.rounds, "multiple": self.multiple or 1, "batch": self.batch}
        for name, count in counts.items():
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise BadRecipe(f"{name}={getattr(self, name)!r}: give a whole number, 1 or more")
        if not isinstance(self.damping, int | float) or not 0 < self.damping < math.inf:
            raise BadRecipe(f"damping={self.damping!r}: give a positive number, such as 1e-3")
