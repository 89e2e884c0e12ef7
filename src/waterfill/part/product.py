"""How a matrix multiplies: a few kinds of products that kernels know, whatever kind of part they come of."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Product(ABC):
    """A matrix [rows, cols], as what it takes to multiply by it."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """The matrix itself (float32)."""

    def times(self, x: Tensor) -> Tensor:
        """x [..., cols] times the transposed matrix: [..., rows], in the dtype of x."""
        return x @ self.matrix().to(x.dtype).T

    @abstractmethod
    def transposed(self) -> "Product":
        """The product with the transposed matrix; equal up to rounding."""


@dataclass(frozen=True, eq=False)
class Codes(Product):
    """Integer codes times scales: entry [r, c] is ((code - zero) * scale) * column, in float32.

    codes: [rows, cols], integers. scales: [rows, groups], float32, column c having that of group c // group. zeros:
    [rows, groups], int16, or None. columns: [cols], float32, or None for ones. group: 0 where there is one.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    columns: Tensor | None = None
    group: int = 0

    def matrix(self) -> Tensor:
        groups = torch.arange(self.codes.shape[1], dtype=torch.int64, device="cpu") // max(self.group, 1)
        groups = groups if self.scales.shape[1] > 1 else torch.zeros_like(groups)
        codes = self.codes.float()
        if self.zeros is not None:
            codes = codes - self.zeros.float()[:, groups]
        scaled = codes * self.scales[:, groups]
        return scaled if self.columns is None else scaled * self.columns

    def transposed(self) -> Product:
        if self.scales.shape[1] > 1 or self.zeros is not None:
            return Whole(self.matrix().T.contiguous(), "groups across the inputs")
        columns = self.columns
        if columns is None:
            columns = torch.ones(self.codes.shape[1], dtype=torch.float32, device="cpu")
        return Codes(self.codes.T.contiguous(), columns[:, None], columns=self.scales[:, 0])


@dataclass(frozen=True, eq=False)
class Levels(Product):
    """Entry [r, c] is values [levels] (float32) at places [rows, cols] (uint8)."""

    values: Tensor
    places: Tensor

    def matrix(self) -> Tensor:
        return self.values[self.places.long()]

    def transposed(self) -> Product:
        return Levels(self.values, self.places.T.contiguous())


@dataclass(frozen=True, eq=False)
class Entries(Product):
    """values [rows, cols] (float32), most of them zero."""

    values: Tensor

    def matrix(self) -> Tensor:
        return self.values

    def transposed(self) -> Product:
        return Entries(self.values.T.contiguous())


@dataclass(frozen=True, eq=False)
class Columns(Product):
    """Zero but for the columns `kept` [kept] (int64) of `cols`, which `inner` holds."""

    kept: Tensor
    inner: Product
    cols: int

    def matrix(self) -> Tensor:
        inner = self.inner.matrix()
        whole = torch.zeros(len(inner), self.cols, dtype=torch.float32, device="cpu")
        whole[:, self.kept] = inner
        return whole

    def times(self, x: Tensor) -> Tensor:
        return self.inner.times(x[..., self.kept])

    def transposed(self) -> Product:
        return Entries(self.matrix().T.contiguous())


@dataclass(frozen=True, eq=False)
class Chain(Product):
    """The product of two matrices, that at the right first."""

    left: Product
    right: Product

    def matrix(self) -> Tensor:
        return self.left.matrix() @ self.right.matrix()

    def times(self, x: Tensor) -> Tensor:
        return self.left.times(self.right.times(x))

    def transposed(self) -> Product:
        return Chain(self.right.transposed(), self.left.transposed())


@dataclass(frozen=True, eq=False)
class Sum(Product):
    """The sum of several matrices, from the first to the last."""

    terms: tuple[Product, ...]

    def matrix(self) -> Tensor:
        return sum((term.matrix() for term in self.terms[1:]), self.terms[0].matrix())

    def times(self, x: Tensor) -> Tensor:
        return sum((term.times(x) for term in self.terms[1:]), self.terms[0].times(x))

    def transposed(self) -> Product:
        return Sum(tuple(term.transposed() for term in self.terms))


@dataclass(frozen=True, eq=False)
class Whole(Product):
    """values [rows, cols] (float32) that no kernel knows. reason: what they are."""

    values: Tensor
    reason: str

    def matrix(self) -> Tensor:
        return self.values

    def transposed(self) -> Product:
        return Whole(self.values.T.contiguous(), self.reason)
