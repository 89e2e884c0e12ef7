"""Second moments of what goes into a weight and what its outputs are worth, added up batch by batch.

Every use of a weight [rows, cols] adds one term rows_o * E_o A E_o^T. Where x is multiplied by the rows (linear layers,
convolutions), A = E[x x^T] and rows_o = sum over positions of E[g_o^2], g the gradient of the outputs. Where a row is
picked or scaled by an input (embeddings, transposed convolutions, x @ W), the two change places: A = E[g g^T] and
rows_i = sum over positions of E[x_i^2]. Both take x and g for independent, as Kronecker-factored curvature does
(arXiv 1503.05671); products are gathered by whole samples besides, where that is not needed (`coherence`).
"""

import functools
import math

import torch
from torch import Tensor

from waterfill.arithmetic import by_own_arithmetic
from waterfill.calibration import per_sample
from waterfill.importance import Importance
from waterfill.network.layout import Layout

_WIDE = 1024  # columns from which on sums are float32
_RANGE = 1e-12, 1e12  # of the largest of some gradients; beyond, sums of their squares may leave that of float32
_PRIOR = 4  # gradients that the mean of all columns stands for
_FEW = 0.25  # of the rows or columns; fewer are no reason for a warning
UNMET = 1 / 16
"""Of a typical row or column that something was met at, what errors cost in one that nothing was: two bits fewer."""
FLOOR = 1e-6
"""Of the mean row: rows that cost nothing would take any error whatever."""


def bytes_of(layout: Layout) -> int:
    """Memory for the Gram matrices of a weight, bytes: by positions and by samples, in two halves each."""
    cols = layout.matrix[1]
    return 4 * cols * cols * (8 if cols <= _WIDE else 4)


class Halves:
    """Two sums of Gram matrices [groups, cols, cols], or of their diagonals, and how much each counts."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.counts = [0, 0]
        self._sums: list[Tensor] = []
        self._turn = 0

    def cut(self, count: int) -> int:
        """How many of `count` things in order belong to the first half: whole samples are held out."""
        self._turn = 1 - self._turn
        return (count + 1 - self._turn) // 2

    def room(self, half: int, count: int, device: torch.device) -> Tensor:
        """The sum to add `count` things to."""
        if not self._sums:
            dtype = torch.float64 if self.shape[-1] <= _WIDE and device.type != "mps" else torch.float32
            self._sums = [torch.zeros(self.shape, dtype=dtype, device=device) for _ in range(2)]
        self.counts[half] += count
        return self._sums[half]

    @property
    def means(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Of the first half, of the second and of both; None if neither saw anything."""
        if sum(self.counts) == 0:
            return None
        first, second = (value.cpu() for value in self._sums)
        both = (first + second) / sum(self.counts)
        return first / max(1, self.counts[0]), second / max(1, self.counts[1]), both

    @property
    def tested(self) -> bool:
        """Whether both halves saw something."""
        return 0 not in self.counts


class Moments:
    """One term of a weight's importance, in sums.

    start, stop: the rows of the weight that this use reads. groups: each takes as many of these rows and has columns of
    its own. cols: columns of the weight. full: Gram matrices, else their diagonals only. near: of columns by positions;
    whole: of the gradient by samples. energy: squares over positions, [rows]; exact: of the gradient by samples. floor:
    the least energy of a row. repeats: how often the energy of each position is added. unit: what columns were divided
    by before they were squared. calls: how often used. aligned: whether samples were always the inputs of a batch.
    """

    def __init__(self, rows: tuple[int, int], groups: int, cols: int, full: bool) -> None:
        self.start, self.stop = rows
        self.groups = groups
        self.near = Halves((groups, cols, cols) if full else (groups, cols))
        self.whole = Halves((groups, cols, cols))
        self.energy: Tensor | None = None
        self.exact: Tensor | None = None
        self.floor = 0.0
        self.repeats = 1
        self.unit: float | None = None
        self.calls = 0
        self.aligned = True
        self._full = full

    @by_own_arithmetic  # it runs in the midst of the network
    def add_columns(self, columns: Tensor) -> bool:
        """Add positions, [groups, cols, positions] in order of the samples. False if they are not finite."""
        cut = self.near.cut(columns.shape[2])
        fine = True
        for half, part in enumerate((columns[:, :, :cut], columns[:, :, cut:])):
            if part.shape[2] == 0:
                continue
            room = self.near.room(half, part.shape[2], columns.device)
            room += torch.bmm(part, part.mT) if self._full else part.square().sum(2)
            diagonal = room.diagonal(dim1=1, dim2=2) if self._full else room
            fine = fine and bool(torch.isfinite(diagonal.sum()))
        return fine

    def add_slopes(self, columns: Tensor) -> bool:
        """`add_columns` of gradients, in a unit in which they can be squared whatever that of the outputs is."""
        if self.unit is None:
            self.unit = unit_of(columns)
        return self.add_columns(columns if self.unit == 1 else columns / self.unit)

    def add_energy(self, squares: Tensor) -> bool:
        """Add sums of squares over positions, [rows of this use]. False if they are not finite."""
        squares = squares.cpu().double()
        self.energy = squares if self.energy is None else self.energy + squares
        return bool(torch.isfinite(squares.sum()))

    def add_gradients(self, gradients: Tensor, columns: per_sample.Columns) -> None:
        """Add the weight's gradient sample by sample, from [samples, groups, rows, positions] and the columns."""
        samples = len(gradients)
        if not self._full or samples == 0:
            return
        unit = unit_of(gradients)
        gradients = gradients if unit == 1 else gradients / unit
        weights = per_sample.row_weights(gradients)
        cut = self.whole.cut(samples)
        for half, (start, stop) in enumerate(((0, cut), (cut, samples))):
            if stop == start:
                continue
            own = functools.partial(_columns_from, columns, start)
            gram, exact = per_sample.moments(gradients[start:stop], own, self.whole.shape[1], weights)
            room = self.whole.room(half, stop - start, gradients.device)
            room += gram
            self.exact = exact.cpu().double() * unit**2 + (0 if self.exact is None else self.exact)


def _columns_from(columns: per_sample.Columns, start: int, part: slice) -> Tensor:
    """The columns of some samples, which are counted from `start` on."""
    return columns(slice(part.start + start, part.stop + start))


def unit_of(gradients: Tensor) -> float:
    """What to divide gradients by so that float32 can hold their squares: 1 unless they are very small or large."""
    largest = float(gradients.abs().max()) if gradients.numel() else 0.0
    return 1.0 if largest == 0 or not math.isfinite(largest) or _RANGE[0] < largest < _RANGE[1] else largest


def shared(rows: Tensor, outputs: int) -> Tensor:
    """Energies of rows, beside one output more in which all are equal: rows that few outputs left silent may yet speak.

    Without it half of the rows before a ReLU got no bits at all where there was one sample.
    """
    spread = (outputs * rows + rows.mean()) / (outputs + 1)
    return torch.maximum(unmet(rows, rows), spread).clamp_min(FLOOR * float(rows.mean()))


def unmet(costs: Tensor, energy: Tensor) -> Tensor:
    """Costs of rows or columns; where nothing was ever met a share of the mean of those where something was.

    energy: what was met at each. An error there cost nothing in these inputs; in others it will.
    """
    silent = energy == 0
    if not bool(silent.any()) or bool(silent.all()):
        return costs
    return torch.where(silent, UNMET * costs[~silent].mean(), costs)


def words_of_unmet(rows: Tensor, cols: Tensor) -> str:
    """How many rows and columns met nothing, by what was met at each, in words; empty if they are few.

    Some channels are silent in every network.
    """
    counted = ((int((energy == 0).sum()), len(energy), name) for energy, name in ((rows, "rows"), (cols, "columns")))
    told = " and ".join(f"{count} of {whole} {name}" for count, whole, name in counted if count > _FEW * whole)
    return f"no batch met {told}: what errors there cost is assumed" if told else ""


class GradientSquares:
    """Sums of squares of the gradient of the weight itself, by row [rows] and by column [cols], float64.

    probes: gradients of each batch. count: gradients in all.
    """

    def __init__(self, layout: Layout, probes: int) -> None:
        self.layout = layout
        self.probes = probes
        self.count = 0
        self.rows = torch.zeros(layout.matrix[0], dtype=torch.float64, device="cpu")
        self.cols = torch.zeros(layout.matrix[1], dtype=torch.float64, device="cpu")

    def add(self, gradient: Tensor) -> None:
        """Add the gradient of a probe, in the shape of the weight."""
        self.count += 1
        unit = unit_of(gradient)
        squares = (gradient.detach().reshape(-1, *self.layout.matrix).float() / unit).square().sum(0)
        self.rows += squares.sum(1).cpu().double() * unit**2
        self.cols += squares.sum(0).cpu().double() * unit**2

    @property
    def total(self) -> float:
        """The sum of all squares."""
        return float(self.rows.sum())

    @property
    def unmet(self) -> str:
        """`words_of_unmet` of the gradient."""
        return words_of_unmet(self.rows, self.cols)

    def importance(self, outputs: int) -> Importance | None:
        """Rows and a diagonal with these sums; None where there is no gradient. outputs: output rows."""
        if not self.total > 0:
            return None
        rows = self.rows / (outputs * self.probes * self.layout.count)
        cols = self.cols / self.total
        cols = (self.count * cols + _PRIOR * cols.mean()) / (self.count + _PRIOR)
        rows, cols = shared(rows, outputs), torch.maximum(cols, unmet(self.cols / self.total, self.cols))
        return Importance(rows, diagonal=cols.clamp_min(FLOOR * float(cols.mean())).float(), kernel=self.layout.kernel)
