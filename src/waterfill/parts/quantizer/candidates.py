"""Candidates of quantized matrices: round, fit densities to the codes, choose codes by their cost under them, repeat.

Scalar steps are those of high-rate theory, D = w Delta^2 / 24 per entry at a slope of price nats per bit
(docs/theory.md); with codes chosen by rate and distortion they stay the best down to below one bit (docs/decisions.md).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from waterfill.coding.chunking import narrow, rows_per_chunk
from waterfill.coding.model import density_model, fitting
from waterfill.importance import Importance
from waterfill.parts.quantizer import feedback_torch
from waterfill.parts.quantizer.code_choice import Chooser
from waterfill.parts.quantizer.feedback import Feedback, feed_back
from waterfill.parts.quantizer.grid import Grid, candidate_grids, step_weights

LARGE = 1 << 22
"""In matrices of so many entries one round of choosing is enough, and the best step is found on some of the rows."""
_ENTRIES_TRIED_WHOLE = 1 << 16  # of larger matrices the grids are compared on some of the rows, of about
_ENTRIES_TRIED = 1 << 15  # entries,
_FEWEST_ROWS, _ROWS_ENOUGH = 64, 128  # but at least so many rows: the first where they are long
_LONG_ROW = 1 << 12  # columns
_ENTRIES_OF_DENSITY = 1 << 16  # sampled entries to which densities are fitted
_ROUGH = 256.0  # products of errors in bfloat16, 2^-9 apart, then add a thousandth to the distortion
_MOST_ON_A_TRELLIS = 1 << 14  # codes; beyond, costs along a path are too coarse in float32 to tell two of them apart
_CHUNKS_AT_A_TIME = 2  # chunks of rows quantized at once


@dataclass(frozen=True)
class Choices:
    """How codes are chosen on a grid. states: of a trellis, 0 for scalar codes. device: where errors are fed back.

    rough: whether products of errors may be in bfloat16 where that is faster. like: a density model of similar codes,
    whose axes and taps the first fit takes; None to search for them.
    """

    states: int = 0
    device: str = "cpu"
    rough: bool = False
    like: fitting.DensityModel | None = None


@dataclass(frozen=True, eq=False)
class Candidate:
    """Codes [rows, cols] (int8, int16 or int32) on a grid, and how they were chosen.

    feedback: None where every entry is chosen by itself.
    """

    codes: np.ndarray
    grid: Grid
    chooser: Chooser
    feedback: Feedback | None

    @property
    def kernel(self) -> tuple[int, ...]:
        """The spatial extent behind a channel, or ()."""
        return self.chooser.kernel

    @property
    def states(self) -> int:
        """States of the trellis that the codes run along; 0 where there is none, or all codes are equal."""
        differ = self.codes.size > 0 and self.codes.min() < self.codes.max()
        return self.chooser.states if differ else 0

    @property
    def cube(self) -> np.ndarray:
        """Codes [rows, channels, positions]."""
        return self.codes.reshape(len(self.codes), -1, len(self.chooser.model.positions))

    @classmethod
    def rounded(cls, target: Tensor, importance: Importance, price: float, grid: Grid, choices: Choices) -> "Candidate":
        """Round, fit densities to the rounded codes, and choose codes by their cost under these."""
        shape = (target.shape[0], target.shape[1])
        kernel = density_model.spatial(shape[1], importance.kernel)
        positions = int(np.prod(kernel)) if kernel else 1
        codes = _by_rows(shape, lambda rows: np.rint(_in_steps(target, grid, rows)).astype(np.int32))
        cube = codes.reshape(shape[0], -1, positions)
        if choices.like is None:
            model = fitting.fit(cube, kernel, choices.states, _ENTRIES_OF_DENSITY)
        else:
            model = fitting.fit_like(cube, kernel, choices.like, choices.states, _ENTRIES_OF_DENSITY)
        if importance.gram is None and model.flat and codes.size >= _ENTRIES_TRIED_WHOLE:
            grid = grid.nearer(fitting.base_offset(cube, model, choices.states))
        row, col = step_weights(shape, importance)
        weights = (
            0.5 * row * grid.row_scales(shape[0]).astype(np.float64) ** 2 / price,
            col * grid.col_scales(shape[1]).astype(np.float64) ** 2,
        )
        chooser = Chooser(model, kernel, weights, choices.states)
        feedback = _feedback(importance.lower, grid.col_scales(shape[1]), chooser, choices)
        return cls(_choose(target, grid, chooser, feedback), grid, chooser, feedback)

    def again(self, target: Tensor) -> "Candidate":
        """Fit the densities to the codes again, and choose codes once more."""
        states = self.chooser.states
        model = fitting.fit_like(self.cube, self.kernel, self.chooser.model, states, _ENTRIES_OF_DENSITY)
        chooser = replace(self.chooser, model=model)
        return replace(self, codes=_choose(target, self.grid, chooser, self.feedback), chooser=chooser)

    def bits(self, share: float) -> float:
        """Bits of the codes under their densities, and of the grid's scales; share: of these rows in all."""
        vectors = (self.grid.channels, self.grid.places)
        side = share * sum(len(v) for v in vectors if v is not None)
        side += 0 if self.grid.rows is None else len(self.grid.rows)
        return fitting.total_bits(self.cube, self.kernel, self.chooser.model, self.chooser.states) + 3.0 * side

    def error(self, target: Tensor) -> Tensor:
        """The target minus the restored codes, [rows, cols]."""
        return target - self.grid.restored(torch.from_numpy(self.codes), slice(None))


@dataclass(frozen=True, eq=False)
class _Trial:
    """A candidate of some rows, the grid that all rows would have, D + price * bits, and whether bfloat16 will do."""

    candidate: Candidate
    grid: Grid
    cost: float
    rough: bool


def best_candidate(target: Tensor, importance: Importance, price: float, choices: Choices) -> Candidate:
    """The candidate of least cost over all grids and, where `choices` has states, with the trellis or without.

    Target and importance lie on the CPU, whatever the device of the feedback.
    """
    cols = max(1, target.shape[1])
    least = max(_ENTRIES_TRIED // cols, _FEWEST_ROWS if cols >= _LONG_ROW else _ROWS_ENOUGH)
    every = max(1, len(target) // least) if target.numel() >= _ENTRIES_TRIED_WHOLE else 1
    tried = _cheapest(target, importance, price, choices, every)
    if every == 1:
        return tried.candidate.again(target)
    choices = replace(choices, states=tried.candidate.chooser.states, rough=tried.rough and target.numel() >= LARGE)
    candidate = Candidate.rounded(target, importance, price, tried.grid, choices)
    return candidate.again(target) if target.numel() < LARGE else candidate


def _cheapest(target: Tensor, importance: Importance, price: float, choices: Choices, every: int) -> _Trial:
    """The grid on which one in `every` rows cost least, along a trellis or not."""
    grids = candidate_grids(target, importance, price)  # first of all: what it factorizes is shared
    rows = slice(None, None, every)
    sampled, sampled_importance = target[rows], importance.select_rows(rows)

    def trial(grid: Grid, choices: Choices) -> _Trial:
        candidate = Candidate.rounded(sampled, sampled_importance, price, grid.select_rows(rows), choices)
        if not several and every == 1:
            return _Trial(candidate, grid, 0.0, False)
        error = candidate.error(sampled)
        by_row = sampled_importance.by_row(error, error)
        cost = 0.5 * float((sampled_importance.rows.double() * by_row).sum()) + price * candidate.bits(1 / every)
        return _Trial(candidate, grid, cost, _rough_will_do(error, by_row, importance))

    several = len(grids) > 1 or choices.states > 0
    tried = [trial(grid, replace(choices, states=0)) for grid in grids]
    if choices.states:
        unit = price * max(1, sampled.numel())
        tried += [
            trial(one.grid.finer(one.cost / unit), replace(choices, like=one.candidate.chooser.model))
            for one in tried
            if np.abs(one.candidate.codes).max(initial=0) < _MOST_ON_A_TRELLIS
        ]
    return min(tried, key=lambda one: one.cost)


def _rough_will_do(error: Tensor, cost: Tensor, importance: Importance) -> bool:
    """Whether bfloat16, of errors like these, adds little to what they cost [rows].

    With A = T^T T what is rounded off T_ij E_j adds a share of sum_j A_jj E_j^2, however little of that sum the
    feedback leaves.
    """
    if importance.gram is None or len(importance.gram) != error.shape[1]:
        return False
    independent = float(error.square().sum(0) @ importance.gram.diagonal().to(error))
    return independent <= _ROUGH * float(cost.sum())


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


def _feedback(lower: np.ndarray | None, scales: np.ndarray, chooser: Chooser, choices: Choices) -> Feedback | None:
    """The feedback of errors through the factor `lower`; None where every entry is chosen by itself."""
    positions = len(chooser.model.positions)
    if lower is None and positions == 1 and not chooser.states:
        return None
    lower = np.eye(positions) if lower is None else lower
    return Feedback(lower, scales[: len(lower)], choices.rough, choices.device)


def _choose(target: Tensor, grid: Grid, chooser: Chooser, feedback: Feedback | None) -> np.ndarray:
    """Codes [rows, cols]; with feedback along the Gram matrix's columns where there is one."""
    rows, cols = target.shape
    if feedback is None:
        return _by_rows((rows, cols), lambda part: chooser(part, _in_steps(target, grid, part)))
    visits = len(feedback.steps)

    def make(part: slice) -> np.ndarray:
        x = _turned(_in_steps(target, grid, part).reshape(-1, cols // visits, visits))
        rule = chooser.rule(part, visits)
        if on_cpu:
            codes = feed_back(x, feedback, rule)
        else:
            codes = feedback_torch.feed_back(torch.from_numpy(x).to(feedback.device), feedback, rule).cpu().numpy()
        return _turned(narrow(codes)).reshape(-1, cols)

    on_cpu = feedback.device == "cpu"
    return _by_rows((rows, cols), make, _CHUNKS_AT_A_TIME if on_cpu else rows)  # a graphics card wants all at once


def _turned(cube: np.ndarray) -> np.ndarray:
    """The axes [a, b, c] as [c, b, a], contiguous."""
    one = cube.shape[1] == 1  # a matrix is turned faster
    turned = torch.from_numpy(cube[:, 0]).T[:, None] if one else torch.from_numpy(cube).permute(2, 1, 0)
    return turned.contiguous().numpy()
