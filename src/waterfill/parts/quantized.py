"""Uniform quantization: integer codes times one step, times row, channel and position scales where they pay.

Codes are chosen by distortion + price * bits under the densities of `waterfill.coding.product`, and coded under them.
The step is that of high-rate theory, D = w Delta^2 / 24 per entry at a slope of price nats per bit (DESIGN 6.2); with
codes chosen by their true cost it stays the best one down to below one bit (docs/why.md).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from waterfill.coding import matrix, product, scale_model, trellis
from waterfill.coding.plans import narrow, row_chunks, rows_per_chunk
from waterfill.coding.stream import Reader, Sink
from waterfill.errors import BadRecipe
from waterfill.importance import Importance
from waterfill.part import Part, Spec
from waterfill.parts.choose import Chooser
from waterfill.parts.feedback import feed_back
from waterfill.parts.grid import FARTHEST, Grid, candidate_grids, step_weights
from waterfill.parts.grouped import FixedRate, fit_grouped

_LARGE = 1 << 22  # from so many entries on, one round of choosing is enough: the densities hardly move
_TOGETHER = 2  # chunks of rows quantized at once
_SAMPLE = 1 << 19
_MOST_FLAGS = 8 << 7 | 127


@dataclass(frozen=True, eq=False)
class QuantizedPart(Part):
    """codes [rows, cols] (int8, int16 or int32) on a `Grid`; kernel: the spatial extent behind a channel, or ().

    states: of the trellis that the codes run along, 0 for none.
    """

    codes: Tensor
    grid: Grid
    kernel: tuple[int, ...] = ()
    states: int = 0
    kind: ClassVar[int] = 3

    @cached_property
    def plan(self) -> matrix.Plan:
        """How the codes are written; found once, shared by tally and file."""
        return matrix.plan(self.codes.numpy(), self.kernel, self.states)

    @cached_property
    def scales(self) -> tuple[Tensor, Tensor]:
        """Row scales [rows, 1], step included, and column scales [cols] (float32)."""
        row, col = self.grid.row_scales(self.shape[0]), self.grid.col_scales(self.shape[1])
        return torch.from_numpy(row)[:, None], torch.from_numpy(col)

    def dense(self) -> Tensor:
        return self.dense_rows(slice(None))

    def dense_rows(self, rows: slice) -> Tensor:
        """Some rows of the matrix."""
        row, col = self.scales
        restored = self.codes[rows].float().mul_(row[rows])
        return restored if self.grid.channels is None and self.grid.places is None else restored.mul_(col)

    def apply(self, x: Tensor) -> Tensor:
        row, col = self.scales
        return ((x * col.to(x.dtype)) @ self.codes.to(x.dtype).T) * row[:, 0].to(x.dtype)

    def write(self, out: Sink) -> None:
        vectors = (self.grid.rows, self.grid.channels, self.grid.places)
        exponent = self.states.bit_length() - 1 if self.states else 0
        out.uint(sum((v is not None) << i for i, v in enumerate(vectors)) | len(self.kernel) << 3 | exponent << 7)
        for size in self.kernel:
            out.uint(size)
        out.float32(self.grid.step)
        for vector in vectors:
            if vector is not None:
                out.ints(vector)
        out.codes(self.plan)

    @classmethod
    def read(cls, src: Reader, shape: tuple[int, int]) -> Self:
        flags = src.uint(_MOST_FLAGS)
        states = 1 << (flags >> 7) if flags >> 7 else 0
        if states and states not in trellis.STATES:
            raise src.fail(f"a trellis of {states} states")
        kernel = tuple(src.uint(1 << 20) for _ in range(flags >> 3 & 15))
        positions = int(np.prod(kernel, dtype=object)) if kernel else 1
        if positions == 0 or shape[1] % positions:
            raise src.fail(f"a kernel {kernel} that does not divide {shape[1]} columns")
        step = src.float32()
        lengths = (shape[0], shape[1] // positions, positions)
        vectors = [src.ints(n) if flags >> i & 1 else None for i, n in enumerate(lengths)]
        if any(v is not None and len(v) and np.abs(v).max() > FARTHEST for v in vectors):
            raise src.fail("a scale exponent is out of range")
        grid = Grid(step, *vectors)
        with np.errstate(over="ignore"):
            if grid.rows is not None and not np.isfinite(grid.row_scales(shape[0])).all():
                raise src.fail("a scale that overflows")
        return cls(shape, torch.from_numpy(src.codes(*shape, kernel)), grid, kernel, states)

    def describe(self) -> str:
        vectors = {"row": self.grid.rows, "channel": self.grid.channels, "position": self.grid.places}
        scaled = [name for name, v in vectors.items() if v is not None]
        along = f", {self.states} states" if self.states else ""
        return "quantized" + along + (f", {'/'.join(scaled)} scales" if scaled else "")


@dataclass(frozen=True)
class Quantize(Spec):
    """Uniform quantization at the price; with `bits`, fixed-rate codes and a float16 scale for each group of columns.

    bits: 2 to 8, fixed-rate codes of so many bits (what execution engines elsewhere want), or None: by the price.
    group: columns that share a scale, or None: a whole row. symmetric: without a zero point. states: at the price, codes
    may run along a trellis of 4, 8, 16, 32, 64, 128 or 256 states, which they do where it costs less; 0 for never.
    """

    bits: int | None = None
    group: int | None = None
    symmetric: bool = True
    states: int = 0

    def __post_init__(self) -> None:
        if self.states not in (0, *trellis.STATES):
            raise BadRecipe(
                f"Quantize(states={self.states!r}): a trellis has {', '.join(map(str, trellis.STATES))} states"
            )
        if self.bits is not None and self.states:
            raise BadRecipe("Quantize(states=...) goes without bits=...; along a trellis the price decides")
        if self.bits is None and (self.group is not None or not self.symmetric):
            raise BadRecipe("Quantize(group=..., symmetric=...) go with bits=...; without bits the price decides")
        if self.bits is not None and not (isinstance(self.bits, int) and 2 <= self.bits <= 8):
            raise BadRecipe(f"Quantize(bits={self.bits!r}): bits is a whole number from 2 to 8")
        if self.group is not None and not (isinstance(self.group, int) and self.group >= 1):
            raise BadRecipe(f"Quantize(group={self.group!r}): group is a whole number of columns, or None for a row")

    def __repr__(self) -> str:
        given = {"bits": self.bits, "group": self.group, "symmetric": None if self.symmetric else False}
        given["states"] = self.states or None
        return f"Quantize({', '.join(f'{name}={value}' for name, value in given.items() if value is not None)})"

    @property
    def fixed_rate(self) -> bool:
        return self.bits is not None

    def fit(self, target: Tensor, importance: Importance, price: float, start: Part | None = None) -> Part:
        importance.check(target.shape[0], target.shape[1])
        if self.bits is not None:
            return fit_grouped(target, importance, FixedRate(self.bits, self.group or target.shape[1], self.symmetric))
        if target.numel() < _LARGE:
            draft = _cheapest(target, importance, price, self.states, slice(None))[1].again(target)
        else:
            some = slice(None, None, max(1, target.numel() // _SAMPLE))
            grid, tried = _cheapest(target, importance, price, self.states, some)
            draft = _Draft.rounded(target, importance, price, grid, tried.part.states)
        return _refit_step(draft.part, target, importance)


def _cheapest(
    target: Tensor, importance: Importance, price: float, states: int, rows: slice
) -> "tuple[Grid, _Draft]":
    """The grid on which some of the rows cost least, along a trellis or not, and their draft."""
    grids = candidate_grids(target, importance, price)  # first of all: what it factorizes is shared
    seen, share = target[rows], importance.select_rows(rows)

    def trial(grid: Grid, states: int) -> "tuple[float, Grid, _Draft]":
        draft = _Draft.rounded(seen, share, price, grid.select_rows(rows), states)
        return draft.cost(seen, share, price), grid, draft

    best = min((trial(grid, 0) for grid in grids), key=lambda tried: tried[0])
    if states:
        finer = best[1].finer(best[0] / (price * max(1, seen.numel())))
        best = min(best, trial(finer, states), key=lambda tried: tried[0])
    return best[1:]


@dataclass(frozen=True, eq=False)
class _Draft:
    """Codes on one grid, and what chose them."""

    part: QuantizedPart
    chooser: Chooser
    lower: np.ndarray | None

    @classmethod
    def rounded(cls, target: Tensor, importance: Importance, price: float, grid: Grid, states: int) -> "_Draft":
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
        codes = _choose(target, grid, chooser, importance.lower)
        return cls(QuantizedPart(shape, torch.from_numpy(codes), grid, kernel, states), chooser, importance.lower)

    def again(self, target: Tensor) -> "_Draft":
        """Choose once more, under densities fitted to the codes as they are now."""
        part, model = self.part, self.chooser.model
        positions = len(model.positions)
        cube = part.codes.numpy().reshape(part.shape[0], -1, positions)
        chooser = replace(self.chooser, model=product.fit_like(cube, part.kernel, model, part.states))
        codes = _choose(target, part.grid, chooser, self.lower)
        return _Draft(replace(part, codes=torch.from_numpy(codes)), chooser, self.lower)

    def cost(self, target: Tensor, importance: Importance, price: float) -> float:
        """D + price * bits, nats, with the bits that the densities at hand would need."""
        codes, model = self.part.codes.numpy(), self.chooser.model
        cube = codes.reshape(len(codes), -1, len(model.positions))
        vectors = (self.part.grid.rows, self.part.grid.channels, self.part.grid.places)
        side = sum(3.0 * len(v) for v in vectors if v is not None)
        bits = product.total_bits(cube, self.part.kernel, model, self.part.states) + side
        return importance.distortion(target - self.part.dense()) + price * bits


def _in_steps(target: Tensor, grid: Grid, rows: slice) -> np.ndarray:
    """Some rows of the target divided by their scales, float32 [rows, cols]."""
    x = target[rows].float().numpy() / grid.row_scales(target.shape[0])[rows, None]
    if grid.channels is not None or grid.places is not None:
        x /= grid.col_scales(target.shape[1])
    return x


def _by_rows(shape: tuple[int, int], make: Callable[[slice], np.ndarray], chunks: int = 1) -> np.ndarray:
    """Codes [rows, cols] made some chunks of rows at a time, so that only the narrow result is as large as the matrix."""
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


def _refit_step(part: QuantizedPart, target: Tensor, importance: Importance) -> QuantizedPart:
    """The step that makes these codes closest to the target; some rows of a large matrix tell it well enough."""
    energy = shared = 0.0
    every = max(1, part.codes.numel() // _LARGE)
    for rows in row_chunks(-(-part.shape[0] // every), part.shape[1]):
        some = slice(rows.start * every, rows.stop * every, every)
        dense, share = part.dense_rows(some), importance.select_rows(some)
        energy += share.inner(dense, dense)
        shared += share.inner(dense, target[some])
    factor = shared / energy if energy > 0 else 1.0
    step = float(np.float32(part.grid.step * factor))
    if not 0.5 < factor < 2 or step <= 0:
        return part
    return replace(part, grid=replace(part.grid, step=step))
