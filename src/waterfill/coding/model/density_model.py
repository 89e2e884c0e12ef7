"""The density of every code, known to the decoder before it reads the code (docs/theory.md): its scale and its mean.

Codes z [rows, channels, positions] follow a generalized Gaussian whose scale is a product of a row's, a channel's and a
position's factor, and whose mean, for spatial kernels, is predicted from the positions already decoded. All of it is a
handful of integers and integer arithmetic.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from waterfill.coding import density

MOST_POSITIONS = 1024
NEAREST = 8
TAP_UNIT = 16  # taps are in sixteenths
MOST_TAPS = 127
"""The magnitudes of one position's taps sum to at most this, so that a mean of 24-bit codes fits 32 bits."""
MOST_SCALE = 255
"""The largest scale index of an entry, so that at most 23 bits of a code are raw."""


@dataclass(frozen=True, eq=False)
class DensityModel:
    """The integers of the model.

    shape: index into the family. base: scale index where all factors are zero. rows [R], channels [C]: factors in
    quarters of an octave, or None. positions [P]: factors in eighths. taps [n]: prediction weights in sixteenths, the
    positions' neighbors one after the other, or None.
    """

    shape: int
    base: int
    rows: np.ndarray | None
    channels: np.ndarray | None
    positions: np.ndarray
    taps: np.ndarray | None

    @property
    def phases(self) -> int:
        """How many phases of each table are in use."""
        return 1 if self.taps is None else density.PHASES

    @property
    def flat(self) -> bool:
        """Whether all entries have one scale, and no means are predicted."""
        given = [vector for vector in (self.rows, self.channels, self.positions, self.taps) if vector is not None]
        return not any(vector.any() for vector in given)

    def factors(self, rows: int, channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scale indices as a sum of three vectors (int32), base included in the first."""
        first = np.zeros(rows, np.int32) if self.rows is None else 2 * self.rows.astype(np.int32)
        second = np.zeros(channels, np.int32) if self.channels is None else 2 * self.channels.astype(np.int32)
        return first + np.int32(self.base), second, self.positions.astype(np.int32)

    def extent(self, rows: int, channels: int) -> tuple[int, int]:
        """The smallest and the largest sum of three factors."""
        factors = self.factors(rows, channels)
        return sum(int(f.min()) for f in factors), sum(int(f.max()) for f in factors)


def spatial(cols: int, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """The kernel without sizes of 1 if passes over its positions make sense for so many columns, else ()."""
    positions = math.prod(kernel)
    sensible = min(kernel, default=0) > 0 and 1 < positions <= MOST_POSITIONS and cols % positions == 0
    return tuple(size for size in kernel if size > 1) if sensible else ()


@lru_cache(maxsize=32)
def neighbors(kernel: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """For every kernel position, in raster order, the nearest positions before it (at most `NEAREST`, ascending)."""
    at = np.stack(np.unravel_index(np.arange(math.prod(kernel)), kernel), axis=1)
    near = []
    for p in range(len(at)):
        distance = ((at[:p] - at[p]) ** 2).sum(1)
        near.append(np.sort(np.argsort(distance, kind="stable")[:NEAREST]))
    return tuple(near)


def predict(earlier: list[np.ndarray], near: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Mean of the next position's codes in eighths of a step (int32), from the arrays of the positions before it."""
    mean = np.zeros(earlier[0].shape, dtype=np.int32)
    for q, tap in zip(near, taps, strict=True):
        if tap:
            mean += np.int32(tap) * earlier[q]
    return mean >> 1


def center(mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split a mean in eighths into the nearest integer and the phase -4 .. 3 that is left."""
    whole = (mean + 4) >> 3
    return whole, mean - (whole << 3)


def residuals(codes: np.ndarray, kernel: tuple[int, ...], taps: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Residuals (int32) and phases (uint8) of codes [rows, channels, positions]; mirrored where a phase is negative."""
    if taps is None:
        return np.ascontiguousarray(codes, dtype=np.int32), np.zeros((0, 0, 0), dtype=np.uint8)
    planes = [np.ascontiguousarray(codes[:, :, p], dtype=np.int32) for p in range(codes.shape[2])]
    residual = np.empty(codes.shape, dtype=np.int32)
    phases = np.zeros(codes.shape, dtype=np.uint8)
    residual[:, :, 0] = planes[0]
    start = 0
    for p, near in enumerate(neighbors(kernel)):
        if p:
            whole, phase = center(predict(planes, near, taps[start : start + len(near)]))
            residual[:, :, p] = np.where(phase < 0, whole - planes[p], planes[p] - whole)
            phases[:, :, p] = np.abs(phase)
        start += len(near)
    return residual, phases


def shifts(scale: np.ndarray) -> np.ndarray:
    """The number of raw low bits, for scale indices beyond the last table: there a bin of 2^shift is nearly flat."""
    return np.maximum((scale - density.SCALES + 8) >> 3, 0)


def half(shift: np.ndarray) -> np.ndarray:
    """Half a bin, so that the bins of 2^shift codes lie around the multiples of it."""
    return np.where(shift > 0, 1 << np.maximum(shift - 1, 0), 0)
