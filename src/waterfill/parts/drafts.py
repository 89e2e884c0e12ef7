"""How codes on a grid are found: round, fit the densities to that, choose by the true cost, and then once more.

Scalar steps are those of high-rate theory, D = w Delta^2 / 24 per entry at a slope of price nats per bit (DESIGN 6.2);
with codes chosen by their true cost they stay the best down to below one bit (docs/why.md).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from waterfill.coding import product, scale_model
from waterfill.coding.plans import narrow, rows_per_chunk
from waterfill.importance import Importance
from waterfill.parts.choose import Chooser
from waterfill.parts.feedback import feed_back
from waterfill.parts.grid import Grid, candidate_grids, step_weights

LARGE = 1 << 22
"""From so many entries on one round of choosing is enough, and some of the rows tell which grid is best."""
_SAMPLE = 1 << 19
_TOGETHER = 2  # chunks of rows quantized at once


@dataclass(frozen=True, eq=False)
class Draft:
    """Codes [rows, cols] (int8, int16 or int32) on a grid, and what chose them."""

    codes: np.ndarray
    grid: Grid
    chooser: Chooser
    lower: np.ndarray | None

    @property
    def kernel(self) -> tuple[int, ...]:
        """The spatial extent behind a channel, or ()."""
        return self.chooser.kernel

    @property
    def states(self) -> int:
        """Of the trellis that the codes run along; 0 where there is none, or nothing to tell codes by."""
        differ = self.codes.size > 0 and self.codes.min() < self.codes.max()
        return self.chooser.states if differ else 0

    @property
    def cube(self) -> np.ndarray:
        """Codes [rows, channels, positions]."""
        return self.codes.reshape(len(self.codes), -1, len(self.chooser.model.positions))

    @classmethod
    def rounded(cls, target: Tensor, importance: Importance, price: float, grid: Grid, states: int) -> "Draft":
        """Round, fit the densities to that, and choose by the true cost under them."""
        shape = (target.shape[0], target.shape[1])
        kernel = scale_model.spatial(shape[1], importance.kernel)
        positions = int(np.prod(kernel)) if kernel else 1
        row, col = step_weights(shape, importance)
        weights = (
            0.5 * row * grid.row_scales(shape[0]).astype(np.float64) ** 2 / price,
            col * grid.col_scales(shape[1]).astype(np.float64) ** 2,
        )
        codes = _by_rows(shape, lambda rows: np.rint(_in_steps(target, grid, rows)).astype(np.int32))
        model = product.fit(codes.reshape(shape[0], -1, positions), kernel, states)
        chooser = Chooser(model, kernel, weights, states)
        return cls(_choose(target, grid, chooser, importance.lower), grid, chooser, importance.lower)

    def again(self, target: Tensor) -> "Draft":
        """Choose once more, under densities fitted to the codes as they are now."""
        states = self.chooser.states
        model = product.fit_like(self.cube, self.kernel, self.chooser.model, states)
        chooser = replace(self.chooser, model=model)
        return replace(self, codes=_choose(target, self.grid, chooser, self.lower), chooser=chooser)

    def cost(self, target: Tensor, importance: Importance, price: float) -> float:
        """D + price * bits, nats, with the bits that the densities at hand would need."""
        vectors = (self.grid.rows, self.grid.channels, self.grid.places)
        side = sum(3.0 * len(v) for v in vectors if v is not None)
        bits = product.total_bits(self.cube, self.kernel, self.chooser.model, self.chooser.states) + side
        restored = self.grid.restored(torch.from_numpy(self.codes), slice(None))
        return importance.distortion(target - restored) + price * bits


def drafted(target: Tensor, importance: Importance, price: float, states: int) -> Draft:
    """The draft of least cost, of all grids and, with `states`, with codes along the trellis of so many or without."""
    if target.numel() < LARGE:
        return _cheapest(target, importance, price, states, slice(None))[1].again(target)
    some = slice(None, None, max(1, target.numel() // _SAMPLE))
    grid, tried = _cheapest(target, importance, price, states, some)
    return Draft.rounded(target, importance, price, grid, tried.chooser.states)


def _cheapest(target: Tensor, importance: Importance, price: float, states: int, rows: slice) -> tuple[Grid, Draft]:
    """The grid on which some of the rows cost least, along a trellis or not, and their draft."""
    grids = candidate_grids(target, importance, price)  # first of all: what it factorizes is shared
    seen, share = target[rows], importance.select_rows(rows)

    def trial(grid: Grid, states: int) -> tuple[float, Grid, Draft]:
        draft = Draft.rounded(seen, share, price, grid.select_rows(rows), states)
        return draft.cost(seen, share, price) if several else 0.0, grid, draft

    several = len(grids) > 1 or states > 0
    tried = [trial(grid, 0) for grid in grids]
    if states:
        unit = price * max(1, seen.numel())
        tried += [trial(grid.finer(cost / unit), states) for cost, grid, _ in tried]
    return min(tried, key=lambda one: one[0])[1:]


def _in_steps(target: Tensor, grid: Grid, rows: slice) -> np.ndarray:
    """Some rows of the target divided by their scales, float32 [rows, cols]."""
    x = target[rows].float().numpy() / grid.row_scales(target.shape[0])[rows, None]
    if grid.channels is not None or grid.places is not None:
        x /= grid.col_scales(target.shape[1])
    return x


def _by_rows(shape: tuple[int, int], make: Callable[[slice], np.ndarray], chunks: int = 1) -> np.ndarray:
    """Codes [rows, cols] made a few chunks of rows at a time, so that only the narrow result is as large as all."""
    codes = np.empty(shape, dtype=np.int8)
    step = chunks * rows_per_chunk(shape[1])
    for start in range(0, shape[0], step):
        rows = slice(start, min(start + step, shape[0]))
        piece = narrow(make(rows))
        codes = codes.astype(np.promote_types(codes.dtype, piece.dtype), copy=False)
        codes[rows] = piece
    return codes


def _choose(target: Tensor, grid: Grid, chooser: Chooser, lower: np.ndarray | None) -> np.ndarray:
    """Codes [rows, cols]; with feedback along the Gram matrix's columns where there is one."""
    rows, cols = target.shape
    positions = len(chooser.model.positions)
    if lower is None and positions == 1 and not chooser.states:  # every entry stands alone
        return _by_rows((rows, cols), lambda part: chooser(part, _in_steps(target, grid, part)))
    lower = np.eye(positions) if lower is None else lower
    visits, scales = len(lower), grid.col_scales(cols)[: len(lower)]

    def make(part: slice) -> np.ndarray:
        x = _in_steps(target, grid, part).reshape(-1, cols // visits, visits).transpose(2, 1, 0)
        codes = feed_back(np.ascontiguousarray(x), (lower, scales), chooser.rule(part, visits))
        return np.ascontiguousarray(codes.transpose(2, 1, 0)).reshape(-1, cols)

    return _by_rows((rows, cols), make, _TOGETHER)
