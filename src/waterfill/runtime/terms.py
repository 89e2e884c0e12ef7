"""Matrices that stay compressed in memory and multiply from there, as modules with plain buffers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.coding.exact_product import exact_product
from waterfill.errors import BadInput
from waterfill.product import Chain, Codes, Columns, Entries, Product, Sum, Whole
from waterfill.runtime import layout, operators

_MOST_COLS = 1 << 18  # that integer sums of 32 bits allow for
_OUTLIER = 64 + 8  # bits of a correction
_NARROW = 1 << 16  # columns that 16 bits tell apart
_FULL = 0.25  # share of entries from which a sparse matrix is not worth its indices


class Term(nn.Module):
    """A matrix [rows, cols] in memory. `forward`: x [..., cols] -> [..., rows]; it has no gradients."""

    rows: int
    cols: int

    def restored(self, rows: Tensor | None = None) -> Tensor:
        """The matrix (float32), or some of its rows [n] (int64)."""
        raise NotImplementedError

    @property
    def words(self) -> str:
        """What it is, for a table."""
        raise NotImplementedError

    def _keep(self, **values: Tensor | None) -> None:
        for name, value in values.items():
            self.register_buffer(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Term":
        """Move buffers, and leave their types: scales of a packed matrix are no weights to be rounded."""

        def moved(value: Tensor) -> Tensor:
            made = fn(value)
            return made if made.dtype == value.dtype else value.to(made.device)

        super()._apply(moved, recurse)
        return self


class CodesTerm(Term):
    """Small codes times scales; those beyond the width are corrected one by one."""

    data: Tensor
    scales: Tensor
    zeros: Tensor | None
    columns: Tensor | None
    starts: Tensor
    where: Tensor
    values: Tensor

    def __init__(self, codes: Codes, size: int) -> None:
        super().__init__()
        self.rows, self.cols = codes.codes.shape
        self.size = size
        self.group = codes.group if codes.scales.shape[1] > 1 else max(self.cols, 1)
        self.bits = width_of(codes)
        low, high = -(1 << self.bits - 1), (1 << self.bits - 1) - 1
        kept = codes.codes.clamp(low, high)
        zeros = codes.zeros
        self._keep(
            data=torch.from_numpy(layout.packed(kept.numpy(), self.bits)),
            scales=codes.scales.float().contiguous(),
            zeros=None if zeros is None else (zeros + (1 << self.bits - 1)).to(torch.int16).contiguous(),
            columns=None if codes.columns is None else codes.columns.float().contiguous(),
        )
        extra = codes.codes.to(torch.int32) - kept.to(torch.int32)
        places = extra.nonzero()
        self.corrected = len(places)
        if self.corrected:
            counts = torch.bincount(places[:, 0], minlength=self.rows)
            begin = torch.zeros(1, dtype=torch.int64, device="cpu")
            self._keep(
                starts=torch.cat([begin, counts.cumsum(0)]).to(torch.int32),
                where=places[:, 1].to(torch.int32),
                values=extra[places[:, 0], places[:, 1]],
            )

    @property
    def _matrix(self) -> operators.Matrix:
        corrections = [self.starts, self.where, self.values] if self.corrected else []
        given = (corrections, self.bits, self.group, self.cols)
        return operators.Matrix(self.data, self.scales, self.zeros, self.columns, *given)

    def forward(self, x: Tensor) -> Tensor:
        return operators.codes_product(x, self._matrix, self.size)

    def restored(self, rows: Tensor | None = None) -> Tensor:
        if rows is None:
            return self._matrix.restored()
        return operators.codes_rows(rows, self._matrix)

    @property
    def words(self) -> str:
        return f"{self.bits}-bit codes" + (f", {self.corrected:,} corrected" if self.corrected else "")


class EntriesTerm(Term):
    """The entries that are not zero, row by row."""

    starts: Tensor
    where: Tensor
    values: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.rows, self.cols = matrix.shape
        places = matrix.nonzero()
        counts = torch.bincount(places[:, 0], minlength=self.rows)
        begin = torch.zeros(1, dtype=torch.int64, device="cpu")
        where = places[:, 1].to(torch.int16 if self.cols <= _NARROW else torch.int32)
        self._keep(starts=torch.cat([begin, counts.cumsum(0)]), where=where, values=matrix[places[:, 0], places[:, 1]])

    def forward(self, x: Tensor) -> Tensor:
        _check_cols(x, self.cols)
        return operators.entries_product(x, self.starts, self.where, self.values)

    def restored(self, rows: Tensor | None = None) -> Tensor:
        whole = operators.entries(self.starts, self.where, self.values, self.cols)
        return whole if rows is None else whole[rows]

    @property
    def words(self) -> str:
        return f"{len(self.values):,} entries"


class ColumnsTerm(Term):
    """A matrix of which only some columns are not zero."""

    kept: Tensor

    def __init__(self, columns: Columns, size: int) -> None:
        super().__init__()
        self.inner = term_of(columns.inner, size)
        self.rows, self.cols = self.inner.rows, columns.cols
        self._keep(kept=columns.kept)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.inner(x[..., self.kept])
        return made

    def restored(self, rows: Tensor | None = None) -> Tensor:
        inner = self.inner.restored(rows)
        whole = torch.zeros(len(inner), self.cols, dtype=inner.dtype, device=inner.device)
        return whole.index_copy_(1, self.kept, inner)

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

    def restored(self, rows: Tensor | None = None) -> Tensor:
        left, right = self.left.restored(rows), self.right.restored()
        if left.device.type != "cpu":
            return left @ right
        return torch.from_numpy(exact_product(left.numpy(), right.numpy()))

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
        made: Tensor = self.terms[0](x)
        for term in self._terms[1:]:
            made = made + term(x)
        return made

    def restored(self, rows: Tensor | None = None) -> Tensor:
        made = self._terms[0].restored(rows)
        for term in self._terms[1:]:
            made = made + term.restored(rows)
        return made

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

    @property
    def words(self) -> str:
        return f"dense ({self.reason})"


def _check_cols(x: Tensor, cols: int) -> None:
    """Raises BadInput for inputs of another width: a kernel would read what is not theirs."""
    if x.shape[-1] != cols:
        raise BadInput(f"inputs of {x.shape[-1]} features do not fit a packed layer of {cols}")


def width_of(codes: Codes) -> int:
    """Bits of a code in memory: the fewest bytes in all, corrections counted; 8 at most, and for groups as many as hold
    every code."""
    low, high = (int(v) for v in codes.codes.aminmax()) if codes.codes.numel() else (0, 0)
    grouped = codes.scales.shape[1] > 1
    best, least = 0, 0.0
    for bits in layout.WIDTHS:
        first, last = -(1 << bits - 1), (1 << bits - 1) - 1
        if grouped and (low < first or high > last or codes.group % layout.block_cols(bits)):
            continue
        beyond = 0 if first <= low and high <= last else int(((codes.codes < first) | (codes.codes > last)).sum())
        size = 8.0 * len(codes.codes) * layout.row_bytes(codes.codes.shape[1], bits) + _OUTLIER * beyond
        if not best or size < least:
            best, least = bits, size
    return best


def _reason_against(codes: Codes) -> str:
    """Why codes are not packed, or nothing."""
    cols = codes.codes.shape[1]
    if not codes.codes.numel() or cols > _MOST_COLS:
        return f"{cols:,} columns"
    bits = width_of(codes)
    if not bits:
        return f"groups of {codes.group} columns"
    if layout.row_bytes(cols, bits) >= 4 * cols:
        return f"rows of {cols} are too short"
    return ""


def term_of(product: Product, size: int) -> Term:
    """The module of a product. size: bytes of an input as an integer, 1 or 2."""
    if isinstance(product, Codes):
        reason = _reason_against(product)
        return WholeTerm(product.matrix(), reason) if reason else CodesTerm(product, size)
    if isinstance(product, Entries):
        full = int((product.values != 0).sum()) > _FULL * product.values.numel()
        return WholeTerm(product.values, "too many entries") if full else EntriesTerm(product.values)
    kinds: tuple[tuple[type[Product], Any], ...] = ((Columns, ColumnsTerm), (Chain, ChainTerm), (Sum, SumTerm))
    for kind, term in kinds:
        if isinstance(product, kind):
            made: Term = term(product, size)
            return made
    return WholeTerm(product.matrix(), product.reason if isinstance(product, Whole) else "no kernel")
