"""LowRank: a product of a tall and a wide factor, each a part of its own."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from waterfill.coding.exact_product import exact_product
from waterfill.coding.stream import Reader, Sink
from waterfill.errors import BadRecipe
from waterfill.importance import Importance
from waterfill.part import Chain, Entries, Part, Product, Spec, cost, read_part, write_part
from waterfill.parts.leaf import check_leaf, leaf

_EXACT_BELOW = 1024
_FIRST_GUESS = 64
_SPARE = 16
_POWER_STEPS = 4
_UNEVEN = 0.75  # bits by which entries of vectors may fall short of the bound for equal ones, and a scalar quantizer's
_SCALAR_LOSS = 0.25  # bits by which a scalar quantizer with entropy coding misses the bound at high rate


@dataclass(frozen=True, eq=False)
class LowRankPart(Part):
    """left [rows, rank] times right [rank, cols]; no factors at rank zero."""

    factors: tuple[Part, Part] | None
    kind: ClassVar[int] = 7

    @property
    def rank(self) -> int:
        """The number of columns of the left factor."""
        return self.factors[0].shape[1] if self.factors else 0

    def dense(self) -> Tensor:
        if self.factors is None:
            return torch.zeros(self.shape, dtype=torch.float32, device="cpu")
        left, right = (factor.dense().float().numpy() for factor in self.factors)
        return torch.from_numpy(exact_product(left, right))

    def product(self) -> Product:
        if self.factors is None:
            return Entries(self.dense())
        left, right = self.factors
        return Chain(left.product(), right.product())

    def write(self, out: Sink) -> None:
        out.uint(self.rank)
        out.claim(self.shape[0] * self.shape[1])
        for factor in self.factors or ():
            write_part(factor, out)

    @classmethod
    def read(cls, src: Reader, shape: tuple[int, int]) -> Self:
        rank = src.uint(min(shape))
        src.claim(shape[0] * shape[1])
        if rank == 0:
            return cls(shape, None)
        return cls(shape, (read_part(src, (shape[0], rank)), read_part(src, (rank, shape[1]))))

    def children(self) -> dict[str, Part]:
        return dict(zip(("left", "right"), self.factors, strict=True)) if self.factors else {}

    def describe(self) -> str:
        return f"rank {self.rank}" + (f", {self.factors[0].describe()}" if self.factors else "")


@dataclass(frozen=True)
class LowRank(Spec):
    """A product of two factors, [rows, rank] and [rank, cols], the best one under the importance.

    With A = R^T R the distortion is half the squared Frobenius norm of sqrt(g) E R^T, so the singular values of
    sqrt(g) W R^T are the exact error of every rank (Eckart, Young, 1936; with data: arXiv 2403.07378).

    Args:
        rank: at least 0; None for every rank that is worth its bits.
        factors: the spec of both factors; None for `Quantize()`.

    Raises:
        BadRecipe: a rank that is no such integer, or factors that are no spec.

    Example:
        >>> part = LowRank(rank=8).fit(weight, Importance(), price=1e-4)
    """

    rank: int | None = None
    factors: Spec | None = None

    def __post_init__(self) -> None:
        check_leaf("LowRank: factors", self.factors)
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 0):
            raise BadRecipe(f"LowRank: rank={self.rank!r} is not an integer of at least 0")

    def __repr__(self) -> str:
        given = (("rank", self.rank), ("factors", self.factors))
        return f"LowRank({', '.join(f'{name}={value!r}' for name, value in given if value is not None)})"

    def fit(self, target: Tensor, importance: Importance, price: float, start: Part | None = None) -> Part:
        rows, cols = target.shape
        # Beyond this many ranks the factors have more entries than the matrix.
        most = -(-rows * cols // (rows + cols)) if self.rank is None else min(self.rank, rows, cols)
        whitening = Whitening.of(importance, target)

        def worthwhile(sigma: Tensor) -> int:
            return most if self.rank is not None else min(most, int(_pays(sigma, (rows, cols), price).sum()))

        if most == 0:
            return LowRankPart((rows, cols), None)
        sigma, Vh = _right_vectors(whitening.forward(target.double()), most, worthwhile)
        best = worthwhile(sigma)
        ranks = {best} if self.rank is not None else {0, best // 2, best}
        parts = []
        for rank in sorted(ranks):
            right = whitening.backward(sigma[:rank, None].sqrt() * Vh[:rank])
            parts.append(_fitted(target, (right, sigma[:rank]), importance, price, leaf(self.factors)))
        return min(parts, key=lambda part: cost(part, target, importance, price))

    def may_cost_less(self, target: Tensor, importance: Importance, price: float, least: float) -> bool:
        """Whether every singular value, lost or stored in half a bit an entry less than expected, costs less in all."""
        whitened = Whitening.of(importance, target).forward(target.double())
        rows, cols = whitened.shape
        square = whitened @ whitened.T if rows <= cols else whitened.T @ whitened
        energy = torch.linalg.eigvalsh(square).clamp_min(0)
        stored = _spent(energy.sqrt(), (rows, cols), price, _SCALAR_LOSS - _UNEVEN)
        return float(torch.minimum(0.5 * energy, stored).sum()) < least


@dataclass(frozen=True)
class Whitening:
    """The coordinates in which the distortion is half the squared Frobenius norm: sqrt(g) W R^T (float64)."""

    rows: Tensor
    cols: Tensor
    root: Tensor | None

    @classmethod
    def of(cls, importance: Importance, target: Tensor) -> Self:
        """The whitening of an importance; zero weights count a billionth of the mean, so that it is invertible."""
        rows = _positive(importance.row_weights(target.shape[0]).double()).sqrt()
        if importance.gram is not None:
            return cls(rows, torch.ones((), dtype=torch.float32, device="cpu"), importance.root)
        return cls(rows, _positive(importance.diagonal.double().expand(target.shape[1])).sqrt(), None)

    def forward(self, matrix: Tensor) -> Tensor:
        """sqrt(g) W R^T of `matrix` [rows, cols]."""
        scaled = self.rows[:, None] * matrix
        if self.root is None:
            return scaled * self.cols
        return (scaled.reshape(len(scaled), -1, len(self.root)) @ self.root.T).reshape(matrix.shape)

    def backward(self, right: Tensor) -> Tensor:
        """The right factor [rank, cols] of a matrix whose whitened right factor this is."""
        if self.root is None:
            return right / self.cols
        folded = right.reshape(-1, len(self.root)).T
        return torch.linalg.solve_triangular(self.root, folded, upper=True).T.reshape(right.shape)


def _positive(weights: Tensor) -> Tensor:
    mean = float(weights.mean())
    return weights.clamp_min(1e-9 * mean if mean > 0 else 1.0)


def _pays(sigma: Tensor, shape: tuple[int, int], price: float) -> Tensor:
    """Which singular values [n] lower the distortion by more than price * the bits of their two vectors.

    The split of sigma between the factors is even, so an entry of the left vector has energy sigma^2 / rows in the
    metric. Quantized at the water level it costs 1/2 log2(energy / theta) + 1/4 bits and leaves theta / 2 of
    distortion, where theta = price / ln 2.
    """
    return 0.5 * sigma.square() > _spent(sigma, shape, price, _SCALAR_LOSS)


def _spent(sigma: Tensor, shape: tuple[int, int], price: float, loss: float) -> Tensor:
    """Nats of the vectors of singular values [n]: their distortion and bits, `loss` an entry beyond the bound."""
    theta = price / math.log(2)
    spent = torch.zeros_like(sigma)
    for size in shape:
        bits = (0.5 * (sigma.square() / (size * theta)).clamp_min(1.0).log2() + loss).clamp_min(0.0)
        spent += size * (price * bits + theta / 2)
    return spent


def _right_vectors(matrix: Tensor, most: int, worthwhile: Callable[[Tensor], int]) -> tuple[Tensor, Tensor]:
    """Sigma and V^T of `matrix` (float64): complete for a small one, else only as far as it is worthwhile.

    Randomized subspace iteration with a fixed seed (Halko, Martinsson, Tropp, arXiv 0909.4061), doubled in size until
    the last singular value found is not worthwhile; if very many are, the eigenvectors of the smaller product.
    """
    smaller = min(matrix.shape)
    if smaller <= _EXACT_BELOW:
        return torch.linalg.svd(matrix, full_matrices=False)[1:]
    matrix = matrix.float()
    size = min(_FIRST_GUESS, most) + _SPARE
    while 8 * size < smaller:
        seeded = torch.Generator("cpu").manual_seed(size)
        random = torch.randn(matrix.shape[1], size, dtype=torch.float32, device="cpu", generator=seeded)
        Q = torch.linalg.qr(matrix @ random).Q
        for _ in range(_POWER_STEPS):
            Q = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ Q).Q).Q
        _, sigma, Vh = torch.linalg.svd(Q.T @ matrix, full_matrices=False)
        if worthwhile(sigma) <= size - _SPARE:
            return sigma.double(), Vh.double()
        size *= 2
    tall = matrix.shape[0] > matrix.shape[1]
    square, vectors = torch.linalg.eigh(matrix.T @ matrix if tall else matrix @ matrix.T)
    sigma, vectors = square.flip(0).clamp_min(0).sqrt(), vectors.flip(1)
    # What is lost below the resolution of float32 does not matter: the left factor is solved again.
    Vh = vectors.T if tall else (vectors.T @ matrix) / sigma.clamp_min(1e-4 * float(sigma[0]))[:, None]
    return sigma.double(), Vh.double()


def _fitted(target: Tensor, ideal: tuple[Tensor, Tensor], importance: Importance, price: float, factors: Spec) -> Part:
    """Both factors as parts: first the right one, then the left one, solved for the right one as it was coded.

    `ideal` is the right factor with the singular values. The whitened left factor has orthogonal columns of energy
    sigma, so an error F of the right one costs exactly 1/2 sum_k sigma_k F_k A F_k^T; given the right one V, an error
    of the left one costs 1/2 sum_o g_o F_o (V A V^T) F_o^T.
    """
    right, sigma = ideal
    shape = (target.shape[0], target.shape[1])
    if len(sigma) == 0:
        return LowRankPart(shape, None)
    inner = replace(importance, rows=sigma.float())
    right_part = factors.fit(right.float().contiguous(), inner, price)
    V = right_part.dense().double()
    image = importance.times_gram(V)
    gram = image @ V.T
    outer = Importance(importance.rows, gram=(gram + gram.T) / 2)
    assert outer.root is not None  # it has a Gram matrix
    solved = torch.cholesky_solve(image @ target.double().T, outer.root, upper=True).T
    return LowRankPart(shape, (factors.fit(solved.float().contiguous(), outer, price), right_part))
