"""The cost of an error E in a weight matrix [rows, cols]: D(E) = 1/2 sum_o g_o * E_o A E_o^T, in nats.

A is the layer Hessian of GPTQ and OBS, X X^T over the inputs X of the layer, as a mean; g_o weights output o (`rows`
below), as the Gauss-Newton or Fisher diagonal of the outputs does. A comes in three sizes: the identity or a diagonal
[cols], a full Gram matrix [cols, cols], or one small Gram matrix over the positions of a spatial kernel, the same for
every channel.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from waterfill.errors import BadInput

_WIDE = 512  # from here on a factor in float32 halves time and memory
_LEAST_PIVOT = 1e-4  # of the mean diagonal, squared: below, the rounding of float32 would show
_BLOCK = 128  # of rows of a factor found at once
_SMALLEST = 1e-30  # of a float32 sum of products; below, some of them may have vanished


def _one() -> Tensor:
    """The scalar of no weights, float32."""
    return torch.ones((), dtype=torch.float32, device="cpu")


@dataclass(frozen=True, eq=False)
class Importance:
    """The cost of an error in one weight matrix [rows, cols]; `Importance()` is uniform.

    Args:
        rows: output weights g_o, [rows], or a scalar for all.
        diagonal: of A, [cols], or a scalar for all; without meaning where there is a `gram`.
        gram: A itself, [cols, cols], or [positions, positions] where `kernel` has that many positions; then A is that
            matrix for each channel and zero between channels.
        kernel: the spatial extent behind one input channel; cols = channels * prod(kernel), positions fastest.
        damping: what is added to the diagonal of `gram` before it is factorized, relative to its mean (`percdamp` of
            GPTQ); `distortion` has no damping.
        halves: `gram` as measured on each half of the inputs, from which the damping is cross-validated.

    Raises:
        BadInput: values that are not finite, negative weights or damping, a Gram matrix that is not square.

    Example:
        >>> importance = Importance(gram=x.T @ x / len(x))  # x: inputs of the layer, [samples, cols]
        >>> nats = importance.distortion(weight - part.dense())
    """

    rows: Tensor = field(default_factory=_one)
    diagonal: Tensor = field(default_factory=_one)
    gram: Tensor | None = None
    kernel: tuple[int, ...] = ()
    damping: float = 1e-8
    halves: tuple[Tensor, Tensor] | None = None

    def __repr__(self) -> str:
        said = [f"{name} {list(value.shape)}" for name in ("rows", "diagonal") if (value := getattr(self, name)).ndim]
        said += [] if self.gram is None else [f"gram {list(self.gram.shape)}"]
        said += [f"kernel {self.kernel}"] if self.kernel else []
        return f"Importance({', '.join(said) or 'uniform'})"

    def __post_init__(self) -> None:
        given: dict[str, tuple[Tensor | None, ...]]
        given = {"rows": (self.rows,), "diagonal": (self.diagonal,), "gram": (self.gram,), "halves": self.halves or ()}
        for name, values in given.items():
            if any(value is not None and not _finite(value) for value in values):
                raise BadInput(f"importance: {name} holds values that are not finite; give finite weights")
        if not 0 <= self.damping < math.inf:
            raise BadInput(f"importance: damping {self.damping} is no share of the mean diagonal; give 0 or more")
        if _negative(self.rows) or _negative(self.diagonal):
            raise BadInput("importance: negative weights; an error cannot cost less than nothing")
        if self.gram is not None and (self.gram.ndim != 2 or self.gram.shape[0] != self.gram.shape[1]):
            raise BadInput(f"importance: a Gram matrix is square, this one is {list(self.gram.shape)}")
        if self.halves is not None and (self.gram is None or any(h.shape != self.gram.shape for h in self.halves)):
            shapes = " and ".join(str(list(half.shape)) for half in self.halves)
            expected = "there is none" if self.gram is None else f"it is {list(self.gram.shape)}"
            raise BadInput(f"importance: halves of a Gram matrix have its shape, these are {shapes} and {expected}")

    @property
    def positions(self) -> int:
        """Kernel positions per input channel; 1 where there is no kernel."""
        return math.prod(self.kernel)

    @cached_property
    def root(self) -> Tensor | None:
        """Upper triangular R [n, n] with A + damping = R^T R (float64); None without a Gram matrix."""
        if self.gram is None:
            return None
        return self._factor(self.gram.double()).T.contiguous()

    @cached_property
    def lower(self) -> np.ndarray | None:
        """Lower triangular T [n, n] with A + damping = T^T T (float64; wide ones float32); None without `gram`."""
        if self.gram is None:
            return None
        wide = len(self.gram) >= _WIDE
        if wide:
            gram = self.gram.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            gram.diagonal().add_(self.damping * gram.diagonal().mean())
            if _factorize(gram):
                return gram.numpy()
            del gram
        factor = self._factor(self.gram.T.flip((0, 1)).double()).flip((0, 1)).T
        return factor.to(torch.float32 if wide else torch.float64).contiguous().numpy()

    def _factor(self, gram: Tensor) -> Tensor:
        """Lower triangular L (float64) with `gram` + damping = L L^T."""
        damping = self.damping * gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        eye = torch.eye(len(gram), dtype=torch.float64, device="cpu")
        for _ in range(7):  # a million times as much is still rounding, not a wrong matrix
            factor, info = torch.linalg.cholesky_ex(gram + damping * eye)
            if int(info) == 0:
                return factor
            damping = (10 * damping).clamp_min(1e-12 * gram.diagonal().mean())
        raise BadInput("importance: the Gram matrix is not positive semi-definite; it must be a sum of x x^T")

    def inner(self, a: Tensor, b: Tensor) -> float:
        """sum_o rows_o * a_o A b_o^T of two matrices [rows, cols]."""
        return float((self.rows.double() * self.by_row(a, b)).sum())

    def by_row(self, a: Tensor, b: Tensor) -> Tensor:
        """a_o A b_o^T of every row of two matrices [rows, cols], [rows] (float64)."""
        return self.each_by_row(a, b)[0]

    def each_by_row(self, a: Tensor, *others: Tensor) -> list[Tensor]:
        """a_o A b_o^T for each b of others: `by_row` at the cost of one."""
        each = self._by_row(a, others)
        if not all(_SMALLEST < float(by_row.abs().sum(dtype=torch.float64)) < math.inf for by_row in each):
            each = self._by_row(a.double(), [b.double() for b in others])  # products beyond the range of float32
        return [by_row.double() for by_row in each]

    def _by_row(self, a: Tensor, others: Sequence[Tensor]) -> list[Tensor]:
        """a_o A b_o^T, [rows], for each b."""
        if self.gram is not None:
            folded = (a.reshape(a.shape[0], -1, len(self.gram)) @ self.gram.to(a)).reshape(a.shape)
        else:
            folded = a if self.diagonal.ndim == 0 else a * self.diagonal.to(a)
        scale = self.diagonal.to(a) if self.gram is None and self.diagonal.ndim == 0 else 1.0
        return [torch.bmm(folded[:, None, :], b[:, :, None].to(a))[:, 0, 0] * scale for b in others]

    def distortion(self, error: Tensor) -> float:
        """D(error) of a matrix [rows, cols], in nats, without the damping."""
        return 0.5 * self.inner(error, error)

    def expected(self, error: Tensor) -> float:
        """D(error) of a matrix [rows, cols] with the damping added to A, in nats: an estimate for other inputs.

        An input that was zero by chance has no cost in `distortion`, so that dropping its column, or a direction that
        was not sampled, would look better than it is.
        """
        measured = self.distortion(error)
        if self.gram is None:
            return measured
        extra = 0.5 * self.damping * float(self.gram.diagonal().double().mean())
        return measured + extra * replace(self, gram=None, diagonal=_one(), halves=None).inner(error, error)

    def row_weights(self, rows: int) -> Tensor:
        """The output weights g, [rows] (float32)."""
        return self.rows.float().expand(rows)

    def column_weights(self, cols: int) -> Tensor:
        """The diagonal of A, [cols] (float32)."""
        if self.gram is None:
            return self.diagonal.float().expand(cols)
        return self.gram.float().diagonal().repeat(cols // len(self.gram))

    def entry_weights(self, rows: int, cols: int) -> Tensor:
        """The cost of a squared error of each entry if errors do not correlate: g_o * A_ii, [rows, cols] (float32)."""
        return torch.outer(self.row_weights(rows), self.column_weights(cols))

    def correlates(self, cols: int) -> bool:
        """Whether there is a Gram matrix of data over all columns, beyond that of one spatial kernel."""
        return self.gram is not None and len(self.gram) == cols > self.positions

    def times_gram(self, matrix: Tensor) -> Tensor:
        """`matrix` [rows, cols] times A; A is damped if it is a Gram matrix over all columns, to bound solutions."""
        if self.gram is None:
            return matrix * self.diagonal.to(matrix)
        folded = matrix.reshape(matrix.shape[0], -1, len(self.gram))
        image = (folded @ self.gram.to(matrix)).reshape(matrix.shape)
        if not self.correlates(matrix.shape[1]):
            return image
        return image + self.damping * float(self.gram.diagonal().double().mean()) * matrix

    def scaled(self, factor: float) -> "Importance":
        """The same importance with every cost multiplied by `factor`."""
        return self._with_rows(self.rows.double() * factor)

    def select_rows(self, index: "Tensor | slice") -> "Importance":
        """The importance of some of the rows, given by their indices or a slice."""
        return self._with_rows(self.rows[index] if self.rows.ndim else self.rows)

    def damped_by(self, damping: float) -> "Importance":
        """The same importance with another damping, 0 or more."""
        other = copy.copy(self)
        for factor in ("root", "lower"):
            vars(other).pop(factor, None)
        object.__setattr__(other, "damping", damping)
        return other

    def _with_rows(self, rows: Tensor) -> "Importance":
        """The same A and other output weights; factors of A that are cached stay so."""
        reweighted = copy.copy(self)
        object.__setattr__(reweighted, "rows", rows)
        return reweighted

    def cpu(self) -> "Importance":
        """The same importance with all its tensors on the CPU."""
        tensors = [self.rows, self.diagonal, *(() if self.gram is None else (self.gram,)), *(self.halves or ())]
        if all(tensor.device.type == "cpu" for tensor in tensors):
            return self
        gram, halves = self.gram, self.halves
        return replace(
            self,
            rows=self.rows.cpu(),
            diagonal=self.diagonal.cpu(),
            gram=None if gram is None else gram.cpu(),
            halves=None if halves is None else (halves[0].cpu(), halves[1].cpu()),
        )

    def select(self, rows: Tensor, cols: Tensor) -> "Importance":
        """The importance of some rows and columns, by index; with a Gram matrix, of all columns or whole channels."""
        picked = self.select_rows(rows)
        return replace(picked, diagonal=self.diagonal[cols] if self.diagonal.ndim else self.diagonal)

    def check(self, rows: int, cols: int) -> None:
        """Raise BadInput unless this importance fits a matrix [rows, cols]."""
        sizes = (self.rows, rows, "rows"), (self.diagonal, cols, "diagonal")
        for value, size, name in sizes:
            if value.ndim and value.shape != (size,):
                raise BadInput(f"importance: {name} has shape {list(value.shape)}, the weight needs [{size}]")
        if self.kernel and cols % self.positions:
            raise BadInput(f"importance: {cols} columns are not a multiple of the kernel {self.kernel}")
        if self.gram is not None and len(self.gram) not in (cols, self.positions):
            raise BadInput(f"importance: the Gram matrix is {len(self.gram)} wide, the weight has {cols} columns")


def _finite(values: Tensor) -> bool:
    """Whether all values are finite: if their sum is, they are."""
    if not values.ndim:
        return math.isfinite(float(values))
    return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())


def _negative(values: Tensor) -> bool:
    return bool((values < 0).any()) if values.ndim else float(values) < 0


def _factorize(gram: Tensor) -> bool:
    """Replace `gram` [n, n] (float32) by the lower triangular T of gram = T^T T; False where a pivot is too small.

    Blocks of rows from the last to the first: the contribution of the rows below is subtracted in one product.
    """
    least = math.sqrt(_LEAST_PIVOT * float(gram.diagonal().mean()))
    for start in reversed(range(0, len(gram), _BLOCK)):
        now, below = slice(start, min(start + _BLOCK, len(gram))), slice(start + _BLOCK, None)
        rows = gram[now, : now.stop]
        rows.addmm_(gram[below, now].T, gram[below, : now.stop], alpha=-1)
        turned, info = torch.linalg.cholesky_ex(rows[:, now].flip((0, 1)))
        if int(info) or not float(turned.diagonal().min()) > least:
            return False
        upper = turned.flip((0, 1))
        eye = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
        inverse = torch.linalg.solve_triangular(upper, eye, upper=True)
        rows[:, :start] = inverse @ rows[:, :start]
        gram[now, start:] = 0.0
        gram[now, now] = upper.T
    return True


def smooth_gram(kernel: tuple[int, ...], correlation: float) -> Tensor:
    """Gram matrix [positions, positions] of inputs whose neighbors along each axis correlate: A_ij = c^|i - j|_1."""
    gram = torch.ones(1, 1, dtype=torch.float64, device="cpu")
    for size in kernel:
        at = torch.arange(size, dtype=torch.float64, device="cpu")
        gram = torch.kron(gram, correlation ** (at[:, None] - at[None, :]).abs())
    return gram.float()


class ImportanceMap(Mapping[str, Importance]):
    """Importance by the names of weights, all in one unit: what `calibrate` returns.

    Attributes:
        warnings: by name, why a weight has no importance, or what its importance leaves out.
        samples: output rows (images, tokens) that it was measured on; 0 if that is not known.
        streamed: whether each access reads from disk and nothing is kept in memory.
    """

    warnings: Mapping[str, str] = {}
    samples: int = 0
    streamed: bool = False


UNTESTED = 10.0**-1.5
"""Damping where it could not be cross-validated, because no inputs were held out."""
