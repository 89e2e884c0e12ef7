"""The grid of a quantizer: one step, and scales for rows, channels and positions where the costs of errors differ."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from waterfill.coding.density_tables import OCTAVE
from waterfill.importance import Importance

FARTHEST = 200
"""Scale exponents lie within 25 octaves either way."""
_EIGHTHS = np.array(OCTAVE, dtype=np.float32)
_FINEST = 2.0**-22  # of the largest entry: codes stay within 24 bits
_COARSEST = 2.0**32  # of the largest entry: where the step would be longer, all codes are zero
_OCTAVES_ABOVE_MEDIAN = 3.0
_LEAST_DEVIATION = 0.1  # octaves, of the ideal steps; below, scales are not worth trying


def octaves(exponents: np.ndarray) -> np.ndarray:
    """2^(e / 8) as float32, from the frozen eighths of an octave: the same on every machine."""
    exponents = np.asarray(exponents, dtype=np.int64)
    mantissa = _EIGHTHS[exponents % 8]
    return np.ldexp(mantissa, (exponents // 8 - 16).astype(np.int32)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Grid:
    """step times 2^(e/8) for row, channel and position; each a vector of integers e, or None for no scales.

    An entry is restored as (code * (step * row scale)) * (channel scale * position scale), all float32.
    """

    step: float
    rows: np.ndarray | None = None
    channels: np.ndarray | None = None
    places: np.ndarray | None = None

    def select_rows(self, index: slice) -> "Grid":
        """The grid of some of the rows."""
        return self if self.rows is None else replace(self, rows=self.rows[index])

    def finer(self, cost: float) -> "Grid":
        """The grid for codes along a trellis, from the one for scalar codes.

        Each of the two halves of the new grid is coarser than the scalar one. cost: bits per entry plus distortion over
        price. Measured on Gaussian and Laplace sources from 0.2 to 6 bits; within a tenth the step hardly matters.
        """
        return replace(self, step=self.step * min(max(0.37 + cost / 16, 0.45), 0.55))

    def nearer(self, offset: float) -> "Grid":
        """The grid for codes whose best scale lies `offset` eighths of an octave above the one they are coded under.

        The step takes half of the offset: the costs of a step too long and a scale too narrow are both quadratic.
        """
        return replace(self, step=float(np.float32(self.step * 2 ** (offset / 16))))

    def row_scales(self, rows: int) -> np.ndarray:
        """Row scales [rows], float32, the step included."""
        step = np.float32(self.step)
        return np.full(rows, step) if self.rows is None else step * octaves(self.rows)

    def col_scales(self, cols: int) -> np.ndarray:
        """Column scales [cols], float32; positions fastest."""
        if self.channels is None and self.places is None:
            return np.ones(cols, np.float32)
        places = np.ones(1, np.float32) if self.places is None else octaves(self.places)
        channels = np.ones(1, np.float32) if self.channels is None else octaves(self.channels)
        count = cols // len(places) if self.channels is None else len(channels)
        scales = np.broadcast_to(channels, (count,))[:, None] * places
        return np.repeat(scales.ravel(), cols // scales.size)

    def restored(self, codes: Tensor, rows: slice) -> Tensor:
        """Some rows of the restored matrix (float32), of codes [rows, cols] of all rows."""
        scales = torch.from_numpy(self.row_scales(len(codes)))[rows, None]
        values = codes[rows].float().mul_(scales)
        plain = self.channels is None and self.places is None
        return values if plain else values.mul_(torch.from_numpy(self.col_scales(codes.shape[1])))


def step_weights(shape: tuple[int, int], importance: Importance) -> tuple[np.ndarray, np.ndarray]:
    """Costs of a squared error by row [rows] and by column [cols], with feedback of earlier errors (float64)."""
    rows, cols = shape
    row = np.broadcast_to(importance.rows.double().numpy(), (rows,))
    if importance.lower is not None:
        diagonal = np.diag(importance.lower) ** 2
        return row, np.tile(diagonal, cols // len(diagonal))
    return row, np.broadcast_to(importance.diagonal.double().numpy(), (cols,))


def candidate_grids(target: Tensor, importance: Importance, price: float) -> list[Grid]:
    """One step for all and, where the costs of errors differ, the water level's scales (docs/theory.md)."""
    rows, cols = target.shape
    row, col = step_weights((rows, cols), importance)
    mean = float(row.mean() * col.mean())
    largest = max(float(x.abs()) for x in target.aminmax()) if target.numel() else 0.0
    level = math.sqrt(12 * price / math.log(2))
    if level >= _COARSEST * largest * math.sqrt(mean):
        return [Grid(max(largest, 1e-30))]
    finest = max(largest * _FINEST, 1e-37)
    grids = [Grid(max(level / math.sqrt(mean), finest))]
    log_row, log_col = (-0.5 * np.log2(np.maximum(w, 1e-9 * w.mean())) for w in (row, col))
    by_place = log_col.reshape(-1, importance.positions)
    places = by_place.mean(0) - by_place.mean()
    channels = by_place.mean(1) - by_place.mean()
    offsets = log_row - log_row.mean()
    if importance.gram is not None and len(importance.gram) == cols:
        cube = target.reshape(rows, -1, importance.positions)
        by_row, by_channel = _mean_squares(cube)
        offsets, channels = _bounded(offsets, by_row), _bounded(channels, by_channel)
    vectors = [offsets, channels, places]
    exponents = [_exponents(v) for v in vectors]
    if any(e is not None for e in exponents):
        step = level * 2.0 ** (log_row.mean() + log_col.mean())
        finest_scale = 2.0 ** (sum(int(e.min()) for e in exponents if e is not None) / 8)
        grids.append(Grid(max(step, finest * 2**3 / finest_scale), *exponents))
    return grids


def _mean_squares(values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of values [rows, channels, positions] by row and by channel (float64), from a few rows at a time."""
    squares = [(square.sum((1, 2)), square.sum((0, 2))) for square in (x.float().square() for x in values.split(128))]
    by_row = torch.cat([row for row, _ in squares]).double() / max(1, values[0].numel())
    by_channel = sum(channel.double() for _, channel in squares) / max(1, values[:, 0].numel())
    return by_row.numpy(), by_channel.numpy()


def _bounded(offsets: np.ndarray, mean_square: np.ndarray) -> np.ndarray:
    """Steps [n] (octaves), each at most 8 times the median step, both relative to the deviation of what they divide.

    An input that was always zero in calibration gives an infinite step; scalar codes are then zero, trellis codes
    cannot be.
    """
    deviations = 0.5 * np.log2(np.maximum(mean_square, 1e-12 * max(float(mean_square.mean()), 1e-30)))
    return np.minimum(offsets, deviations + np.median(offsets - deviations) + _OCTAVES_ABOVE_MEDIAN)


def _exponents(logs: np.ndarray) -> np.ndarray | None:
    """Octaves to whole eighths, or None where they hardly differ."""
    if len(logs) < 2 or logs.std() < _LEAST_DEVIATION:
        return None
    return np.clip(np.rint(8 * logs), -FARTHEST, FARTHEST).astype(np.int64)
