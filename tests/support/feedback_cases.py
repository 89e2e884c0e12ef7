"""What feedback is tested with: random entries, and all that the choice of their codes depends on."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from waterfill.coding.model.density_model import DensityModel, neighbors
from waterfill.parts.quantizer.code_choice import Chooser


def entries(seed: int, *shape: int) -> np.ndarray:
    return 3 * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Search:
    """Targets x [visits, channels, rows], in steps, and how their codes are chosen."""

    x: np.ndarray
    chooser: Chooser

    @property
    def visits(self) -> int:
        return len(self.x)


@st.composite
def searches(draw) -> Search:
    kernel = draw(st.sampled_from([(), (3,), (2, 2)]))
    positions = int(np.prod(kernel))
    channels, rows = draw(st.integers(1, 6)), draw(st.integers(1, 150))
    by_column = draw(st.booleans())  # the Gram matrix: of all columns, or of the kernel
    states = draw(st.sampled_from([0, 4, 8, 32, 256]))
    seed = draw(st.integers(0, 99))
    random = np.random.default_rng(seed)
    taps = random.integers(-8, 9, sum(map(len, neighbors(kernel)))) if kernel else None
    factors = [random.integers(-6, 7, size) if random.random() < 0.7 else None for size in (rows, channels)]
    places = random.integers(-6, 7, positions)
    model = DensityModel(int(random.integers(0, 4)), int(random.integers(30, 75)), *factors, places, taps)
    weights = random.random(rows) * 3 + 0.1, random.random(channels * positions) + 0.1
    visits = channels * positions if by_column else positions
    x = entries(seed, visits, channels * positions // visits, rows) * np.float32(2.0 ** random.integers(-2, 8))
    return Search(x, Chooser(model, kernel, weights, states))
