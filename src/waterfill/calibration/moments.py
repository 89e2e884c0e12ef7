"""Second moments of what goes into a weight and what its outputs are worth, added up batch by batch.

Every use of a weight [rows, cols] adds one term rows_o * E_o A E_o^T. Where x is multiplied by the rows (linear layers,
convolutions), A = E[x x^T] and rows_o = sum over positions of E[g_o^2], g the gradient of the outputs. Where a row is
picked or scaled by an input (embeddings, transposed convolutions, x @ W), the two change places: A = E[g g^T] and
rows_i = sum over positions of E[x_i^2]. Both take x and g for independent, as Kronecker-factored curvature does
(arXiv 1503.05671); products are gathered by whole samples besides, where that is not needed (`coherence`).
"""

import torch
from torch import Tensor

from waterfill.arithmetic import by_own_arithmetic
from waterfill.calibration import per_sample
from waterfill.importance import Importance
from waterfill.network.layout import Layout

_WIDE = 1024  # columns from which on sums are float32
_PRIOR = 4  # gradients that the mean of all columns stands for
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
    the least energy of a row. repeats: how often the energy of each position is added. calls: how
    often used. aligned: whether samples were always the inputs of a batch.
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
        weights = per_sample.row_weights(gradients)
        cut = self.whole.cut(samples)
        for half, some in enumerate((slice(0, cut), slice(cut, samples))):
            if some.stop == some.start:
                continue
            gram, exact = per_sample.moments(
                gradients[some],
                lambda part, at=some.start: columns(slice(part.start + at, part.stop + at)),  # type: ignore[misc]
                self.whole.shape[1],
                weights,
            )
            room = self.whole.room(half, some.stop - some.start, gradients.device)
            room += gram
            self.exact = exact.cpu().double() + (0 if self.exact is None else self.exact)


def shared(rows: Tensor, outputs: int) -> Tensor:
    """Energies of rows, beside one output more in which all are equal: rows that few outputs left silent may yet speak.

    Without it half of the rows before a ReLU got no bits at all where there was one sample.
    """
    return ((outputs * rows + rows.mean()) / (outputs + 1)).clamp_min(FLOOR * float(rows.mean()))


class Slope:
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
        squares = gradient.detach().reshape(-1, *self.layout.matrix).float().square().sum(0)
        self.rows += squares.sum(1).cpu()
        self.cols += squares.sum(0).cpu()

    @property
    def total(self) -> float:
        """The sum of all squares."""
        return float(self.rows.sum())

    def importance(self, outputs: int) -> Importance | None:
        """Rows and a diagonal with these sums; None where there is no gradient. outputs: output rows."""
        if not self.total > 0:
            return None
        rows = self.rows / (outputs * self.probes * self.layout.count)
        cols = self.cols / self.total
        cols = (self.count * cols + _PRIOR * cols.mean()) / (self.count + _PRIOR)
        rows, cols = shared(rows, outputs), cols.clamp_min(FLOOR * float(cols.mean()))
        return Importance(rows, diagonal=cols.float(), kernel=self.layout.kernel)
