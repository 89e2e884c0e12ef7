"""Codes by distortion + price * bits, each under the density that the coder will use for it."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from waterfill.coding import density, native
from waterfill.coding.chunking import rows_per_chunk
from waterfill.coding.model.density_model import NEAREST
from waterfill.coding.model.fitting import DensityModel, center, neighbors, price_tables, shifts
from waterfill.coding.trellis import lanes as trellis_lanes
from waterfill.coding.trellis import trellis
from waterfill.parts.quantizer.viterbi import ESCAPED

_NONE = np.zeros((0, 0), dtype=np.int32)


def choose_codes(
    x: np.ndarray,
    scale: tuple[np.ndarray, np.ndarray],
    means: np.ndarray,
    prices: np.ndarray,
    weights: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """The codes [n, m] (int32) of targets x [n, m] (float32, in steps).

    scale: the scale index of an entry as a sum of two vectors [n], [m] (int32). means: [n, m] in eighths of a step, or
    empty for none. prices: bits [scales, phases, 256]. weights: bits per squared step as a product of two vectors
    [n], [m]. Candidates are the two neighbors of x and the mean's nearest integer where it is closer than three steps.
    """
    x = np.ascontiguousarray(x, dtype=np.float32)
    row, col = (np.ascontiguousarray(w, dtype=np.float32) for w in weights)
    if native.core is not None:
        out = np.empty(x.shape, dtype=np.int32)
        first, second = (np.ascontiguousarray(s, dtype=np.int32) for s in scale)
        native.core.choose_codes(x, first, second, np.ascontiguousarray(means), prices, row, col, out)
        return out
    index = scale[0][:, None] + scale[1]
    shift = shifts(index)
    whole, phase = center(means) if means.size else (np.zeros(x.shape, np.int32), np.zeros(x.shape, np.int32))
    place = np.maximum(index - 8 * shift, 0), np.where(shift > 0, 0, np.abs(phase))
    half = np.where(shift > 0, 1 << np.maximum(shift - 1, 0), 0)

    def total(code: np.ndarray) -> np.ndarray:
        residual = (np.where(phase < 0, whole - code, code - whole) + half) >> shift
        symbol = np.where(np.abs(residual) > 127, density.ESCAPE & 255, residual & 255)
        gap = x - code.astype(np.float32)
        return (row[:, None] * col) * gap * gap + (prices[(*place, symbol)] + shift.astype(np.float32))

    low = np.floor(x).astype(np.int32)
    best, least = low, np.full(x.shape, np.inf, dtype=np.float32)
    for code in (low, low + 1, whole):
        near = np.abs(x - code) < 3
        better = np.where(near | (code is not whole), total(code), np.inf)
        best, least = np.where(better < least, code, best), np.minimum(better, least)
    return best


@dataclass(frozen=True, eq=False)
class CodeCosts:
    """The costs of codes of some rows, when columns are visited in the order of feedback.

    Column c * n + i is channel c of visit i. row_scale [rows], col_scale [n, channels]: scale indices (int32), added.
    row_weight, col_weight, the same shapes: bits per squared step (float32), multiplied. near, taps: int32 [n, taps],
    the visits whose codes predict a mean, -1 for none. prices: bits [scales, phases, 256]. states: of the trellis, 0
    for none; its paths run over chunks of `chunk` rows, in `lanes` [positions, lanes].
    """

    row_scale: np.ndarray
    col_scale: np.ndarray
    row_weight: np.ndarray
    col_weight: np.ndarray
    near: np.ndarray
    taps: np.ndarray
    prices: np.ndarray
    states: int
    chunk: int
    lanes: tuple[int, int]

    @property
    def transition(self) -> np.ndarray:
        """Of the trellis, uint8 [states, 2]."""
        return trellis(self.states).transition if self.states else np.zeros((0, 2), np.uint8)

    def beginning(self) -> np.ndarray:
        """The states in which paths begin, uint8 [chunks, positions, lanes]."""
        return np.zeros((-(-len(self.row_scale) // self.chunk), *self.lanes), np.uint8)


@lru_cache(maxsize=16)
def _prices(shape: int, along: bool) -> np.ndarray:
    """Bits [scales, phases, 256]; along a trellis the value of an escape is included."""
    prices = price_tables(shape)
    if along:
        prices = prices.copy()
        prices[:, :, density.ESCAPE & 255] += ESCAPED
    return prices


@dataclass(frozen=True, eq=False)
class Chooser:
    """Chooses codes by distortion + price * bits.

    model: the densities of the codes [rows, channels, positions]. kernel: their spatial extent, () for none. weights:
    [rows] and [cols], bits per squared step of row and column. states: of the trellis that the codes run along, or 0.
    """

    model: DensityModel
    kernel: tuple[int, ...]
    weights: tuple[np.ndarray, np.ndarray]
    states: int = 0

    def __call__(self, rows: slice, x: np.ndarray) -> np.ndarray:
        """Codes (int32) for targets x [rows, cols] (float32, in steps), each by itself; there is no kernel."""
        row, col = self.weights
        first, second, third = self.model.factors(len(row), len(col))
        scale = first[rows], second + third
        return choose_codes(x, scale, _NONE, _prices(self.model.shape, False), (row[rows], col))

    def rule(self, rows: slice, visits: int) -> CodeCosts:
        """The costs of the codes of these rows when their columns are visited `visits` times."""
        row, col = self.weights
        positions = len(self.model.positions)
        channels = len(col) // positions
        first, second, third = self.model.factors(len(row), channels)
        by_visit = (len(col) // visits, visits)
        lanes = trellis_lanes(len(row), channels, positions) if self.states else 1
        near, taps = self._taps(visits)
        return CodeCosts(
            row_scale=np.ascontiguousarray(first[rows]),
            col_scale=np.ascontiguousarray((second[:, None] + third).reshape(by_visit).T),
            row_weight=row[rows].astype(np.float32),
            col_weight=np.ascontiguousarray(col.reshape(by_visit).T, dtype=np.float32),
            near=near,
            taps=taps,
            prices=_prices(self.model.shape, self.states > 0),
            states=self.states,
            chunk=rows_per_chunk(len(col)) if self.states else len(first[rows]),
            lanes=(positions, lanes),
        )

    def _taps(self, visits: int) -> tuple[np.ndarray, np.ndarray]:
        """For every visit the earlier ones that predict its codes, and by how much: int32 [visits, taps]."""
        positions, model = len(self.model.positions), self.model
        if model.taps is None:
            return np.full((visits, 0), -1, np.int32), np.zeros((visits, 0), np.int32)
        near, taps = np.full((positions, NEAREST), -1, np.int32), np.zeros((positions, NEAREST), np.int32)
        start = 0
        for p, before in enumerate(neighbors(self.kernel)):
            near[p, : len(before)] = before - p
            taps[p, : len(before)] = model.taps[start : start + len(before)]
            start += len(before)
        visit = np.arange(visits)
        ahead = near[visit % positions]
        there = taps[visit % positions]
        return np.where(there != 0, ahead + visit[:, None], -1).astype(np.int32), there
