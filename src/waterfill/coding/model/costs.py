"""The bits of codes under product-scale densities: the inner loop of the search in `search`.

Costs are integers, so that the compiled loop and its NumPy form agree to the bit whatever the order of their sums.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from waterfill.coding import density, native
from waterfill.coding.density_tables import SHAPES
from waterfill.coding.model.density_model import MOST_SCALE, DensityModel, half, shifts

COST_UNIT = 1 << 16
"""Costs are in units of 2^-16 bit."""
_ESCAPE_BITS = 10  # bits, about, of the value of a code too far for any table


@dataclass(frozen=True, eq=False)
class Coded:
    """Residuals (int32) and phases (uint8, or empty for none) [rows, channels, positions] to be coded.

    halves: whether they are those of codes along a trellis; none of their bits are raw, and values beyond the tables
    are escaped.
    """

    residual: np.ndarray
    phases: np.ndarray
    halves: bool = False

    @property
    def most_scale(self) -> int:
        """The largest scale index that differs from the ones below."""
        return density.SCALES - 1 if self.halves else MOST_SCALE

    def factors(self, model: DensityModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The scale indices of these entries as a sum of three vectors (int32)."""
        return model.factors(*self.residual.shape[:2])


@lru_cache(maxsize=32)
def price_tables(shape: int) -> np.ndarray:
    """Bits of every symbol under every table of a shape, float32 [scales, phases, 256]."""
    return np.ascontiguousarray(density.price_list(density.family(shape)))


@lru_cache(maxsize=32)
def cost_tables(shape: int, halves: bool = False) -> np.ndarray:
    """`price_tables` as whole `COST_UNIT`s, int32 [phases, 256, scales]."""
    costs = np.ascontiguousarray(np.rint(price_tables(shape) * COST_UNIT).astype(np.int32).transpose(1, 2, 0))
    if halves:
        costs[:, density.ESCAPE & 255] += _ESCAPE_BITS * COST_UNIT
    return costs


@lru_cache(maxsize=1)
def all_costs() -> np.ndarray:
    """`cost_tables` of every shape side by side, int32 [phases * 256 * scales, shapes]."""
    return np.stack([cost_tables(shape).ravel() for shape in range(len(SHAPES))], axis=1)


def axis_costs(coded: Coded, factors: tuple[np.ndarray, ...], shape: int, deltas: np.ndarray, axis: int) -> np.ndarray:
    """Cost [deltas, length of axis] (int64) when every scale index moves by each of deltas."""
    deltas = np.asarray(deltas, dtype=np.int32)
    costs = cost_tables(shape, coded.halves)
    if native.core is not None:
        out = np.empty((len(deltas), coded.residual.shape[axis]), dtype=np.int64)
        native.core.axis_costs(coded.residual, coded.phases, *factors, costs, deltas, axis, coded.most_scale, out)
        return out
    others = tuple(i for i in range(3) if i != axis)
    rows, channels, positions = factors
    scale = rows[:, None, None] + channels[None, :, None] + positions
    phase = coded.phases if coded.phases.size else np.zeros((), np.uint8)
    moved = []
    for delta in deltas:
        where, raw = place(coded.residual, scale + delta, phase, coded.most_scale)
        moved.append((costs.ravel()[where] + raw.astype(np.int64) * COST_UNIT).sum(others))
    return np.stack(moved)


def place(
    residual: np.ndarray, scale: np.ndarray, phase: np.ndarray, most_scale: int = MOST_SCALE
) -> tuple[np.ndarray, np.ndarray]:
    """The index of each entry's cost in a flat `cost_tables`, and how many of its bits are raw."""
    scale = np.minimum(scale, most_scale)
    shift = shifts(scale)
    symbol = (residual + half(shift)) >> shift
    symbol = np.where(np.abs(symbol) > 127, density.ESCAPE & 255, symbol & 255)
    phase = np.where(shift > 0, 0, phase).astype(np.int32)
    return (phase * 256 + symbol) * density.SCALES + np.maximum(scale - 8 * shift, 0), shift


def distinct(coded: Coded, factors: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """The distinct residuals, scale indices and phases of entries, and how often each occurs."""
    rows, channels, positions = factors
    scale = np.ravel(rows[:, None, None] + channels[None, :, None] + positions)
    phase = coded.phases.ravel() if coded.phases.size else np.zeros(scale.shape, np.uint8)
    entries, count = np.unique(np.stack([coded.residual.ravel(), scale, phase]), axis=1, return_counts=True)
    return *entries, count
