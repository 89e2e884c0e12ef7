"""Matrices made of others, as modules that multiply from compressed weights; and the choice of a module for each."""

from typing import Any

import torch
from torch import Tensor, nn

from waterfill.coding.exact_product import exact_product
from waterfill.part import Chain, Codes, Columns, Entries, Levels, Product, Sum, Whole
from waterfill.part.memory import size_of, width_of
from waterfill.runtime import layout, operators, short
from waterfill.runtime.leaves import CodesTerm, EntriesTerm, LevelsTerm, Term, check_cols

_MOST_COLS = 1 << 18  # that integer sums of 32 bits allow for
_FLOAT = 32  # bits of a weight as it was
_FULL = 0.25  # share of entries from which a sparse matrix is not worth its indices


class ColumnsTerm(Term):
    """A matrix of which only some columns are not zero."""

    kept: Tensor

    def __init__(self, columns: Columns, size: int) -> None:
        super().__init__()
        self.inner = term_of(columns.inner, size)
        self.rows, self.cols = self.inner.rows, columns.cols
        self._keep(kept=columns.kept)

    def forward(self, x: Tensor) -> Tensor:
        check_cols(x, self.cols)
        made: Tensor = self.inner(x[..., self.kept])
        return made

    def restored(self, rows: Tensor | None = None) -> Tensor:
        inner = self.inner.restored(rows)
        whole = torch.zeros(len(inner), self.cols, dtype=inner.dtype, device=inner.device)
        return whole.index_copy_(1, self.kept, inner)

    def block(self, first: int, last: int) -> Tensor:
        inner = self.inner.block(first, last)
        whole = torch.zeros(len(inner), self.cols, dtype=inner.dtype, device=inner.device)
        return whole.index_copy_(1, self.kept, inner)

    @property
    def of_columns(self) -> tuple[Tensor, Term]:
        return self.kept, self.inner

    @property
    def products(self) -> int:
        return self.inner.products

    @property
    def words(self) -> str:
        return f"{len(self.kept)} columns, {self.inner.words}"


class ChainTerm(Term):
    """The product of two matrices: that at the right first."""

    def __init__(self, chain: Chain, size: int) -> None:
        super().__init__()
        self.left, self.right = term_of(chain.left, size), term_of(chain.right, size)
        self.rows, self.cols = self.left.rows, self.right.cols

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.left(self.right(x))
        return made

    def record(self) -> "short.Record | None":
        left, right = self._modules["left"], self._modules["right"]  # found at once, unlike attributes
        if type(left) is not CodesTerm or type(right) is not CodesTerm:
            return None
        first, second = left.record(), right.record()
        return None if first is None or second is None else (first[0] + second[0], first[1] + second[1])

    def restored(self, rows: Tensor | None = None) -> Tensor:
        left, right = self.left.restored(rows), self.right.restored()
        if not operators.runs_here(left):
            return left @ right
        return torch.from_numpy(exact_product(left.numpy(), right.numpy()))

    def block(self, first: int, last: int) -> Tensor:
        return self.left.block(first, last) @ self.right.block(0, self.right.rows)

    @property
    def factors(self) -> tuple[Term, Term]:
        return self.left, self.right

    @property
    def products(self) -> int:
        return self.left.products + self.right.products

    @property
    def words(self) -> str:
        return f"rank {self.right.rows}, {self.left.words}"


class SumTerm(Term):
    """The sum of several matrices."""

    def __init__(self, product: Sum, size: int) -> None:
        super().__init__()
        self.terms = nn.ModuleList(term_of(term, size) for term in product.terms)
        self.rows, self.cols = self._terms[0].rows, self._terms[0].cols

    @property
    def _terms(self) -> "list[Term]":
        return [term for term in self.terms if isinstance(term, Term)]

    def forward(self, x: Tensor) -> Tensor:
        if short.usual(x, self.cols, self.large) and x.numel() == self.cols:
            records = self.records()
            if records is not None:
                return short.total(x, self.rows, records)
        made: Tensor = self.terms[0](x)
        for term in self._terms[1:]:
            made = made + term(x)
        return made

    def records(self) -> "list[short.Record] | None":
        terms = self._modules["terms"]
        assert terms is not None
        found = [term.record() for term in terms._modules.values()]  # type: ignore[union-attr, operator]
        return None if None in found else found

    def restored(self, rows: Tensor | None = None) -> Tensor:
        made = self._terms[0].restored(rows)
        for term in self._terms[1:]:
            made = made + term.restored(rows)
        return made

    def block(self, first: int, last: int) -> Tensor:
        made = self._terms[0].block(first, last)
        for term in self._terms[1:]:
            made = made + term.block(first, last)
        return made

    @property
    def products(self) -> int:
        return sum(term.products for term in self._terms)

    @property
    def words(self) -> str:
        return " + ".join(term.words for term in self._terms)


class WholeTerm(Term):
    """A matrix as it is."""

    matrix: Tensor

    def __init__(self, matrix: Tensor, reason: str) -> None:
        super().__init__()
        self.rows, self.cols = matrix.shape
        self.reason = reason
        self._keep(matrix=matrix)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.to(x.dtype).T

    def restored(self, rows: Tensor | None = None) -> Tensor:
        return self.matrix if rows is None else self.matrix[rows]

    def block(self, first: int, last: int) -> Tensor:
        return self.matrix[first:last]

    @property
    def words(self) -> str:
        return f"dense ({self.reason})"


def _coded(codes: Codes, size: int) -> Term:
    """The module of codes; as they are, with the reason, where there is none."""
    cols, (bits, beyond) = codes.codes.shape[1], width_of(codes) if codes.codes.numel() else (0, 0)
    if not codes.codes.numel() or cols > _MOST_COLS:
        return WholeTerm(codes.matrix(), f"{cols:,} columns")
    if not bits:
        return WholeTerm(codes.matrix(), f"groups of {codes.group} columns")
    if size_of(codes, bits, beyond) >= _FLOAT * codes.codes.numel():
        return WholeTerm(codes.matrix(), "no smaller in memory")
    return CodesTerm(codes, size, (bits, beyond))


def _looked_up(levels: Levels) -> Term:
    """The module of values of a table; as they are where that is no smaller."""
    rows, cols = levels.places.shape
    bits = next(bits for bits in layout.WIDTHS if 1 << bits >= len(levels.values))
    if not levels.places.numel() or 8 * rows * layout.row_bytes(cols, bits) >= _FLOAT * rows * cols:
        return WholeTerm(levels.matrix(), "no smaller in memory")
    return LevelsTerm(levels, bits)


def term_of(product: Product, size: int) -> Term:
    """The module of a product. size: bytes of an input as an integer, 1 to 3."""
    if isinstance(product, Codes):
        return _coded(product, size)
    if isinstance(product, Levels):
        return _looked_up(product)
    if isinstance(product, Entries):
        full = int((product.values != 0).sum()) > _FULL * product.values.numel()
        return WholeTerm(product.values, "too many entries") if full else EntriesTerm(product.values)
    kinds: tuple[tuple[type[Product], Any], ...] = ((Columns, ColumnsTerm), (Chain, ChainTerm), (Sum, SumTerm))
    for kind, term in kinds:
        if isinstance(product, kind):
            made: Term = term(product, size)
            return made
    return WholeTerm(product.matrix(), product.reason if isinstance(product, Whole) else "no kernel")
