"""Second moments of a weight's inputs and of the gradients of its outputs, accumulated batch by batch.

Every use of a weight [rows, cols] adds one term rows_o * E_o A E_o^T. Where x is multiplied by the rows (linear layers,
convolutions), A = E[x x^T], the layer Hessian, and rows_o = sum over positions of E[g_o^2], g the gradient of the
outputs. Where a row is picked or scaled by an input (embeddings, transposed convolutions, x @ W), the two change
places: A = E[g g^T] and rows_i = sum over positions of E[x_i^2]. Both assume that x and g are independent, as
Kronecker-factored curvature does (K-FAC, arXiv 1503.05671); gradients of whole samples, accumulated besides, need no
such assumption (`per_sample`).
"""

import functools
import math

import torch
from torch import Tensor

from waterfill.arithmetic import by_own_arithmetic
from waterfill.calibration import per_sample
from waterfill.importance import Importance
from waterfill.network.layout import Layout

_ENTRIES_AT_A_TIME = 1 << 18
_WIDE = 512  # columns; sums of more are float32
_RANGE = 1e-12, 1e12  # of the largest gradient; beyond, sums of squares may leave the range of float32
_PRIOR = 4  # pseudo-gradients with the mean of all columns
_SHARE_WARNED = 0.25  # of the rows or columns; fewer zero ones bring no warning
UNMET = 1 / 16
"""The cost of a row or column that was always zero, as a share of the mean of the others: two bits fewer an entry."""
FLOOR = 1e-6
"""The least weight of a row, as a share of the mean: a row of zero weight would get no bits at all."""


def bytes_of(layout: Layout) -> int:
    """Bytes of the sums of a weight's Gram matrices, over two halves of the inputs."""
    cols = layout.matrix[1]
    return 4 * cols * cols * (4 if cols <= _WIDE else 2)


def bytes_kept(layout: Layout) -> int:
    """Bytes of the Gram matrices of a weight that stay: of both halves of the inputs, and of all."""
    return 4 * layout.matrix[1] ** 2 * 3


class Halves:
    """Sums of Gram matrices [groups, cols, cols], or of their diagonals, over two halves of the inputs, with counts."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.counts = [0, 0]
        self._sums: list[Tensor] = []
        self._turn = 0

    def cut(self, count: int) -> int:
        """How many of `count` positions or samples, in order, go to the first half; odd ones to each half in turn."""
        self._turn = 1 - self._turn
        return (count + 1 - self._turn) // 2

    def room(self, half: int, count: int, device: torch.device) -> Tensor:
        """The sum of a half, to which `count` positions or samples are about to be added."""
        if not self._sums:
            dtype = torch.float64 if self.shape[-1] <= _WIDE and device.type != "mps" else torch.float32
            self._sums = [torch.zeros(self.shape, dtype=dtype, device=device) for _ in range(2)]
        self.counts[half] += count
        return self._sums[half]

    @property
    def means(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """The means of the first half, of the second and of both; None if both are empty."""
        if sum(self.counts) == 0:
            return None
        first, second = (value.cpu() for value in self._sums)
        both = (first + second) / sum(self.counts)
        return first / max(1, self.counts[0]), second / max(1, self.counts[1]), both

    @property
    def tested(self) -> bool:
        """Whether neither half is empty."""
        return 0 not in self.counts


class Moments:
    """The sums of one term of a weight's importance, for one use of the weight.

    start, stop: the rows of the weight that this use reads. groups: of these rows, each with columns of its own. cols:
    columns of the weight. full: whether Gram matrices are summed, else only their diagonals. sampled: whether they are
    those of whole gradients, so that of the columns only the diagonal is. by_position: of columns; by_sample: of
    gradients. energy: squares summed over positions, [rows]; exact: squares of the gradients of samples,
    [rows]. floor: the least energy of a row. repeats: how often the energy of each position is added. unit: what
    columns were divided by before they were squared. calls: uses so far. aligned: whether samples were always the
    inputs of a batch.
    """

    def __init__(self, rows: tuple[int, int], groups: int, cols: int, full: bool, sampled: bool) -> None:
        self.start, self.stop = rows
        self.groups = groups
        self._joint = full and not sampled
        self.by_position = Halves((groups, cols, cols) if self._joint else (groups, cols))
        self.by_sample = Halves((groups, cols, cols))
        self.energy: Tensor | None = None
        self.exact: Tensor | None = None
        self.floor = 0.0
        self.repeats = 1
        self.unit: float | None = None
        self.calls = 0
        self.aligned = True
        self._full = full

    @by_own_arithmetic  # it runs inside the network's forward pass
    def add_columns(self, columns: Tensor) -> bool:
        """Add columns [groups, cols, positions], in order of the samples. False if they are not finite."""
        cut = self.by_position.cut(columns.shape[2])
        fine = True
        for half, part in enumerate((columns[:, :, :cut], columns[:, :, cut:])):
            if part.shape[2] == 0:
                continue
            room = self.by_position.room(half, part.shape[2], columns.device)
            room += torch.bmm(part, part.mT) if self._joint else part.square().sum(2)
            diagonal = room.diagonal(dim1=1, dim2=2) if self._joint else room
            fine = fine and bool(torch.isfinite(diagonal.sum()))
        return fine

    def add_slopes(self, columns: Tensor) -> bool:
        """`add_columns` of gradients, divided by a unit in which float32 can hold their squares."""
        if self.unit is None:
            self.unit = unit_of(columns)
        return self.add_columns(columns if self.unit == 1 else columns / self.unit)

    def add_energy(self, squares: Tensor) -> bool:
        """Add sums of squares over positions, [rows of this use]. False if they are not finite."""
        squares = squares.cpu().double()
        self.energy = squares if self.energy is None else self.energy + squares
        return bool(torch.isfinite(squares.sum()))

    def add_gradients(self, gradients: Tensor, columns: per_sample.Columns) -> float:
        """Add the weight's gradient sample by sample, from [samples, groups, rows, positions] and the columns.

        Returns the sum of its squares.
        """
        samples = len(gradients)
        if not self._full or samples == 0:
            return 0.0
        total = 0.0
        unit = unit_of(gradients)
        gradients = gradients if unit == 1 else gradients / unit
        weights = per_sample.row_weights(gradients)
        cut = self.by_sample.cut(samples)
        for half, (start, stop) in enumerate(((0, cut), (cut, samples))):
            if stop == start:
                continue
            own = functools.partial(_columns_from, columns, start)
            gram, exact = per_sample.moments(gradients[start:stop], own, self.by_sample.shape[1], weights)
            room = self.by_sample.room(half, stop - start, gradients.device)
            room += gram
            exact = exact.cpu().double() * unit**2
            self.exact = exact if self.exact is None else self.exact + exact
            total += float(exact.sum())
        return total


def _columns_from(columns: per_sample.Columns, start: int, part: slice) -> Tensor:
    """The columns of a slice of samples that are counted from `start`."""
    return columns(slice(part.start + start, part.stop + start))


def unit_of(gradients: Tensor) -> float:
    """A divisor of gradients with which float32 can hold their squares: 1 unless they are very small or large."""
    largest = float(torch.linalg.vector_norm(gradients, math.inf)) if gradients.numel() else 0.0
    return 1.0 if largest == 0 or not math.isfinite(largest) or _RANGE[0] < largest < _RANGE[1] else largest


def with_pseudo_sample(rows: Tensor, outputs: int) -> Tensor:
    """Row energies with one pseudo-sample in which all rows are equal (additive smoothing).

    A ReLU unit that was off in a few samples is not free: without this, half of the rows before a ReLU got no bits at
    all where there was one sample.
    """
    smoothed = (outputs * rows + rows.mean()) / (outputs + 1)
    return torch.maximum(unmet(rows, rows), smoothed).clamp_min(FLOOR * float(rows.mean()))


def unmet(costs: Tensor, energy: Tensor) -> Tensor:
    """Costs of rows or columns; where the energy is zero, `UNMET` times the mean cost of the others.

    energy: of the inputs or gradients at each. An error there had no effect on these inputs; on others it may.
    """
    zero = energy == 0
    if not bool(zero.any()) or bool(zero.all()):
        return costs
    return torch.where(zero, UNMET * costs[~zero].mean(), costs)


def warning_of_unmet(rows: Tensor, cols: Tensor) -> str:
    """A warning that counts the rows and columns of zero energy; empty if they are few, as in most networks."""
    counted = ((int((energy == 0).sum()), len(energy), name) for energy, name in ((rows, "rows"), (cols, "columns")))
    parts = " and ".join(f"{count} of {size} {name}" for count, size, name in counted if count > _SHARE_WARNED * size)
    return f"no batch met {parts}: what errors there cost is assumed" if parts else ""


class GradientSquares:
    """Sums of squares of the gradient of the weight itself, by row [rows] and by column [cols], float64.

    probes: gradients for each batch. count: gradients added so far; known: the sum of squares of those of which only
    that is known. spared: batches whose gradient was left out, to be taken to be like the others.
    """

    def __init__(self, layout: Layout, probes: int) -> None:
        self.layout = layout
        self.probes = probes
        self.count = 0
        self.known = 0.0
        self.spared = 0
        self.rows = torch.zeros(layout.matrix[0], dtype=torch.float64, device="cpu")
        self.cols = torch.zeros(layout.matrix[1], dtype=torch.float64, device="cpu")

    def add(self, gradient: Tensor) -> None:
        """Add the gradient of a probe, in the shape of the weight."""
        self.count += 1
        unit = unit_of(gradient)
        rows, cols = self.layout.matrix
        at_a_time = max(1, _ENTRIES_AT_A_TIME // max(1, cols))
        for matrix in gradient.detach().reshape(-1, rows, cols):
            for start in range(0, rows, at_a_time):
                squares = (matrix[start : start + at_a_time].float() / unit).square()
                self.rows[start : start + at_a_time] += squares.sum(1).cpu().double() * unit**2
                self.cols += squares.sum(0).cpu().double() * unit**2

    def add_known(self, count: int, total: float) -> None:
        """Add gradients of which only the sum of squares is known."""
        self.count += count
        self.known += total

    @property
    def total(self) -> float:
        """The sum of all squares."""
        asked = self.count / self.probes
        return (float(self.rows.sum()) + self.known) * (1 + self.spared / asked if asked else 1.0)

    @property
    def unmet(self) -> str:
        """`warning_of_unmet` of the gradient."""
        return warning_of_unmet(self.rows, self.cols)

    def importance(self, outputs: int) -> Importance | None:
        """Importance with these rows and this diagonal; None where the gradient is zero. outputs: output rows."""
        if not self.total > 0:
            return None
        rows = self.rows / (outputs * self.probes * self.layout.count)
        cols = self.cols / self.total
        cols = (self.count * cols + _PRIOR * cols.mean()) / (self.count + _PRIOR)
        rows, cols = with_pseudo_sample(rows, outputs), torch.maximum(cols, unmet(self.cols / self.total, self.cols))
        return Importance(rows, diagonal=cols.clamp_min(FLOOR * float(cols.mean())).float(), kernel=self.layout.kernel)
