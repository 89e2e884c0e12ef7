"""Codes by distortion + price * bits, each under the density that the coder will use for it."""

from dataclasses import dataclass

import numpy as np

from waterfill.coding import density
from waterfill.coding.compiled import native
from waterfill.coding.product import Product, center, neighbors, predict, price_tables, shifts

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
    if native is not None:
        out = np.empty(x.shape, dtype=np.int32)
        first, second = (np.ascontiguousarray(s, dtype=np.int32) for s in scale)
        native.choose_codes(x, first, second, np.ascontiguousarray(means), prices, row, col, out)
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
class Chooser:
    """What the choice of a code depends on.

    model: the densities of the codes [rows, channels, positions]. kernel: their spatial extent, () for none. weights:
    [rows] and [cols], bits per squared step of row and column.
    """

    model: Product
    kernel: tuple[int, ...]
    weights: tuple[np.ndarray, np.ndarray]

    def __call__(self, rows: slice, columns: np.ndarray, x: np.ndarray, earlier: list[np.ndarray]) -> np.ndarray:
        """Codes (int32) for targets x [rows, columns] (float32, in steps), all columns of one kernel position or,
        without a kernel, any; `earlier` are the planes of codes of the positions before."""
        positions = len(self.model.positions)
        row, col = self.weights
        first, second, third = self.model.factors(len(row), len(col) // positions)
        scale = first[rows], second[columns // positions] + third[columns % positions]
        prices = price_tables(self.model.shape)
        return choose_codes(x, scale, self._means(earlier), prices, (row[rows], col[columns]))

    def _means(self, earlier: list[np.ndarray]) -> np.ndarray:
        if self.model.taps is None or not earlier:
            return _NONE
        near = neighbors(self.kernel)
        start = sum(len(n) for n in near[: len(earlier)])
        here = near[len(earlier)]
        return predict(earlier, here, self.model.taps[start : start + len(here)])
