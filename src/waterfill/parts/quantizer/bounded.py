"""Codes that all fit a width in memory: the clipping of every row is found by search, errors are fed back.

With so many levels that a row may have, the best step follows the row's own spread and not the water level: finer ones
clip, coarser ones round. Rows, and columns where that pays, take the scale, in eighths of an octave, with the least
squared error under the weights that errors have with feedback (`feedback`). Then the columns are quantized one after
the other, each code the nearest of those that are allowed (GPTQ, arXiv 2210.17323, with the clipping in the loop), and
scales are searched once more on the targets that the columns were really given. There is one more code below zero than
above: rows of few levels may have it above instead, and run with a negative scale.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from waterfill.coding.chunking import narrow, row_chunks
from waterfill.coding.codes import widths
from waterfill.importance import Importance
from waterfill.part.memory import held_bytes
from waterfill.parts.quantizer.feedback import BLOCK
from waterfill.parts.quantizer.grid import FARTHEST, Grid, step_weights

_STRIDE, _OCTAVES = 2, {2: 32, 3: 28, 4: 24, 5: 20, 6: 16, 8: 10}  # of the search, in eighths of an octave
_ENTRIES_TRIED, _ROWS_TRIED = 1 << 15, 64  # from which the width is found
_CLIPPED = 2.0  # the distortion of clipped codes of Gaussian sources, over 4^-bits of their energy
_TINY = 2.0**-20  # of the largest entry: rows below are nothing
_MIRRORED = 4  # bits up to which rows may have the odd code above zero


@dataclass(frozen=True, eq=False)
class Bounded:
    """Codes [rows, cols] (int8) of `bits` bits each, and their grid."""

    codes: np.ndarray
    grid: Grid
    bits: int

    def error(self, target: Tensor) -> Tensor:
        """The target minus the restored codes, [rows, cols]."""
        return target - self.grid.restored(torch.from_numpy(self.codes), slice(None))


def bounded(target: Tensor, importance: Importance, bits: int, columns: bool) -> Bounded:
    """Codes of a width for target [rows, cols]; columns: whether these have scales too, else only rows."""
    rows, cols = target.shape
    col = torch.from_numpy(np.array(step_weights((rows, cols), importance)[1])).float()
    lower = None if importance.lower is None else torch.from_numpy(importance.lower).float()
    search = _Search(bits, importance.positions)
    grid, least = search.rows(target, col, search.plain(target))
    codes, given = fed_back(target, _grid_steps(grid, rows, cols), lower, (least, least + search.levels))
    for _ in range(int(columns) + int(lower is not None)):
        grid, least = search.rows(given, col, search.channels(given, grid, least) if columns else grid)
        codes, given = fed_back(target, _grid_steps(grid, rows, cols), lower, (least, least + search.levels))
    return Bounded(narrow(codes.to(torch.int8).numpy()), grid, bits)


@dataclass(frozen=True)
class _Search:
    """The search for scales. positions: of a kernel, which share a channel's scale."""

    bits: int
    positions: int

    @property
    def levels(self) -> int:
        """From the least code of a row to the greatest."""
        return (1 << self.bits) - 1

    def plain(self, target: Tensor) -> Grid:
        """The same scales for all rows, that of the largest entry."""
        largest = max(float(v.abs()) for v in target.aminmax())
        step = float(np.float32(max(largest, 1e-30) / widths.limits(self.bits)[1]))
        return Grid(step, np.zeros(len(target), np.int64))

    def rows(self, target: Tensor, col: Tensor, grid: Grid) -> tuple[Grid, Tensor]:
        """The grid with the best scales of rows, and the least code of each row, [rows, 1]."""
        scales = torch.from_numpy(grid.col_scales(target.shape[1]))
        weights = col * scales.square()
        low, high = widths.limits(self.bits)
        found = []
        for rows in row_chunks(len(target), target.shape[1]):
            x = target[rows] / scales
            best, error = self._best(x, weights, grid.step, torch.tensor(low, dtype=torch.float32, device="cpu"))
            least = torch.full_like(error, low)
            if self.bits <= _MIRRORED:
                other, its_error = self._best(
                    x, weights, grid.step, torch.tensor(-high, dtype=torch.float32, device="cpu")
                )
                best = torch.where(its_error < error, other, best)
                least = torch.where(its_error < error, float(-high), least)
            found.append((best, least))
        exponents, least = (torch.cat(part) for part in zip(*found, strict=True))
        return replace(grid, rows=np.clip(exponents.numpy(), -FARTHEST, FARTHEST)), least[:, None]

    def channels(self, target: Tensor, grid: Grid, least: Tensor) -> Grid:
        """The grid with the best scales of channels, on top of those of rows. least: of each row, [rows, 1]."""
        rows = torch.from_numpy(grid.row_scales(len(target)))
        cube = (target / rows[:, None]).reshape(len(target), -1, self.positions)
        by_channel = cube.permute(1, 0, 2).reshape(cube.shape[1], -1)
        weights = rows.square().repeat_interleave(self.positions)
        found = self._best(by_channel, weights, 1.0, least[:, 0].repeat_interleave(self.positions))[0].numpy()
        return replace(grid, channels=np.clip(found - int(np.rint(np.median(found))), -FARTHEST, FARTHEST))

    def _best(self, x: Tensor, weights: Tensor, step: float, low: Tensor) -> tuple[Tensor, Tensor]:
        """For every row of x [n, m], the exponent e of least squared error by weights [m], its step being
        step * 2^(e / 8): [n] (int64), and that error, [n]. low: the least code of each column, [m], or of all."""
        high = low + self.levels
        reach = torch.maximum(x / high, x / low).amax(1)
        floor = float(reach.max()) * _TINY
        top = torch.ceil(8 * torch.log2(reach.clamp_min(max(floor, 1e-37)) / step))
        best, least = top, torch.full_like(top, float("inf"))

        def tried(exponents: Tensor) -> None:
            nonlocal best, least
            scale = (step * torch.exp2(exponents / 8))[:, None]
            error = (x - (x / scale).round_().clamp_(low, high).mul_(scale)).square_() @ weights
            best, least = torch.where(error < least, exponents, best), torch.minimum(error, least)

        for down in range(0, _OCTAVES[self.bits], _STRIDE):
            tried(top - down)
        for near in (best - 1, best + 1):
            tried(near)
        return best.to(torch.int64), least


def _grid_steps(grid: Grid, rows: int, cols: int) -> Tensor:
    """The steps of a grid, [rows, cols]."""
    return torch.from_numpy(grid.row_scales(rows))[:, None] * torch.from_numpy(grid.col_scales(cols))


def fed_back(
    target: Tensor, steps: Tensor, lower: Tensor | None, limits: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Codes [rows, cols] and the targets that they were chosen for, both float32.

    steps: of every entry, [rows, cols]. lower: as of `Importance`, float32. limits: the least and the greatest code,
    of each row [rows, 1] or of every entry.
    """
    low, high = limits
    if lower is None:
        return (target / steps).round_().clamp_(low, high), target
    visits = len(lower)
    low, high = (v.expand(-1, target.shape[1]).reshape(-1, visits) for v in (low, high))
    x, size = target.reshape(-1, visits).T.contiguous(), steps.reshape(-1, visits).T.contiguous()
    ratio = lower / lower.diagonal()[:, None]
    codes, errors, given = (torch.empty_like(x) for _ in range(3))
    for start in range(0, visits, BLOCK):
        now = range(start, min(start + BLOCK, visits))
        rows = slice(now.start, now.stop)
        wanted = torch.addmm(x[rows], ratio[rows, :start], errors[:start]) if start else x[rows].clone()
        for i in now:
            wanted_i = wanted[i - start]
            if i > start:
                wanted_i = wanted_i + ratio[i, start:i] @ errors[start:i]
            codes[i] = (wanted_i / size[i]).round_().clamp_(low[:, i], high[:, i])
            errors[i] = x[i] - codes[i] * size[i]
            given[i] = wanted_i
    return codes.T.reshape(target.shape), given.T.reshape(target.shape)


def best_bounded(target: Tensor, importance: Importance, price: float) -> Bounded:
    """The codes of least D + price * bits, of what they take in memory, over all widths, with or without column scales.

    Target and importance lie on the CPU. The width is found on some of the rows, from that of Gaussian sources on.
    """
    rows, cols = target.shape
    if not bool(target.any()):
        return Bounded(np.zeros((rows, cols), np.int8), Grid(1e-30), widths.WIDTHS[0])
    tried = widths.worth_trying(cols)
    every = max(1, rows // max(_ENTRIES_TRIED // cols, _ROWS_TRIED))
    some, share = target[::every], importance.select_rows(slice(None, None, every))

    @cache
    def sampled(k: int) -> Bounded:
        return bounded(some, share, tried[k], columns=False)

    @cache
    def cost(k: int) -> float:
        if not 0 <= k < len(tried):
            return math.inf
        lost = share.expected(sampled(k).error(some))
        return lost * rows / len(some) + 8 * price * held_bytes(rows, cols, tried[k], columns=False)

    wanted = _gaussian_width(some, share, price)
    best = min(range(len(tried)), key=lambda k: abs(tried[k] - wanted))
    while (step := min((best - 1, best + 1), key=cost)) is not None and cost(step) < cost(best):
        best = step
    plain = sampled(best) if every == 1 else bounded(target, importance, tried[best], columns=False)
    found = ((False, plain), (True, bounded(target, importance, tried[best], columns=True)))

    def whole(columns: bool, one: Bounded) -> float:
        held = held_bytes(rows, cols, one.bits, columns)
        return importance.expected(one.error(target)) + 8 * price * held

    return min(found, key=lambda pair: whole(*pair))[1]


def _gaussian_width(target: Tensor, importance: Importance, price: float) -> float:
    """Bits at which one more a code saves no more than its price, where each takes a quarter of the distortion."""
    row, col = step_weights((target.shape[0], target.shape[1]), importance)
    squares = torch.from_numpy(np.array(row, np.float64)) @ target.double().square()
    energy = 0.5 * float(squares @ torch.from_numpy(np.array(col, np.float64)))
    return 0.5 * math.log2(max(_CLIPPED * 2 * math.log(2) * energy / max(price * target.numel(), 1e-300), 1.0))
