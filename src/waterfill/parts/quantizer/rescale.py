"""The best scales for codes that are chosen: least squares under the importance.

With codes fixed, the restored row w^_o times a factor is closest to w_o at <w_o, A w^_o> / <w^_o, A w^_o>; the step is
such a factor for all rows at once.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from waterfill.coding.chunking import row_chunks
from waterfill.coding.stream import Tally
from waterfill.importance import Importance
from waterfill.parts.quantizer.candidates import LARGE, Candidate
from waterfill.parts.quantizer.grid import FARTHEST, Grid

_ENTRIES_SAMPLED = 1 << 17  # entries of the rows that the step is fitted to


def refitted(target: Tensor, importance: Importance, price: float, candidate: Candidate) -> Grid:
    """The candidate's grid with the best step and, where rows have scales, the best of these in eighths of an octave.

    Row scales change only if the distortion falls by more than price * bits, and not in large matrices; where they do
    not, the step is fitted to a sample of the rows.
    """
    few = candidate.grid.rows is None or candidate.codes.size >= LARGE
    every = max(1, candidate.codes.size // _ENTRIES_SAMPLED) if few else 1
    shared, energy = _moments(target, importance, candidate, every)
    weights = torch.from_numpy(np.broadcast_to(importance.rows.double().numpy(), len(target)).copy())[::every]
    grid = _with_step(candidate.grid, weights @ shared, weights @ energy)
    if every > 1 or grid.rows is None:
        return grid
    factor = torch.where(energy > 0, shared / energy, 1.0).clamp(0.5, 2)
    moved = np.rint(8 * np.log2((factor * candidate.grid.step / grid.step).numpy())).astype(np.int64)
    rows = np.clip(grid.rows + moved, -FARTHEST, FARTHEST)
    scale = torch.from_numpy(2.0 ** ((rows - grid.rows) / 8))
    other = _with_step(replace(candidate.grid, rows=rows), weights @ (scale * shared), weights @ (scale**2 * energy))

    def saved(step: float, scale: Tensor, exponents: np.ndarray) -> float:
        """The fall of the distortion minus the price of the exponents, nats."""
        factor = scale * (step / candidate.grid.step)
        tally = Tally()
        tally.ints(exponents)
        return float(weights @ (factor * shared - 0.5 * factor**2 * energy)) - price * tally.bits

    better = saved(other.step, scale, rows) > saved(grid.step, torch.ones_like(scale), grid.rows)
    return other if better else grid


def _moments(target: Tensor, importance: Importance, candidate: Candidate, every: int) -> tuple[Tensor, Tensor]:
    """<w_o, A w^_o> and <w^_o, A w^_o> of one in `every` rows, float64."""
    shared, energy = [], []
    codes = torch.from_numpy(candidate.codes)
    for rows in row_chunks(-(-len(target) // every), target.shape[1]):
        some = slice(rows.start * every, rows.stop * every, every)
        restored = candidate.grid.restored(codes, some)
        by_target, by_itself = importance.each_by_row(restored, target[some], restored)
        shared.append(by_target)
        energy.append(by_itself)
    return torch.cat(shared), torch.cat(energy)


def _with_step(grid: Grid, shared: Tensor, energy: Tensor) -> Grid:
    """The grid with the step at which `energy` of what is restored is closest to `shared`."""
    factor = float(shared / energy) if energy > 0 else 1.0
    step = float(np.float32(grid.step * factor))
    return replace(grid, step=step) if 0.5 < factor < 2 and step > 0 else grid
