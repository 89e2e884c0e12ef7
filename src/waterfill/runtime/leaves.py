"""Matrices that stay compressed in memory: small codes, values of a table, and sparse entries."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.part import Codes, Levels
from waterfill.part.memory import width_of
from waterfill.runtime import layout, operators, reference, short
from waterfill.runtime.blocked import rows as blocks

if TYPE_CHECKING:
    from waterfill.runtime.layers.geometry import Geometry

_CODES = ("data", "scales", "zeros", "columns", "starts", "where", "values")
_NARROW = 1 << 16  # columns that 16 bits tell apart


class Term(nn.Module):
    """A matrix [rows, cols] in memory. `forward`: x [..., cols] -> [..., rows]; it has no gradients."""

    rows: int
    cols: int
    runs: str = "packed"
    """How, for a table: from what is compressed, or from the restored matrix ("dense")."""
    large: int = 0
    """Inputs from which they are multiplied as floats; 0 for as many as this machine needs for that to be faster."""

    def restored(self, rows: Tensor | None = None) -> Tensor:
        """The matrix (float32), or some of its rows [n] (int64)."""
        raise NotImplementedError

    def block(self, first: int, last: int) -> Tensor:
        """Rows from the first up to before the last, for products of floats: [last - first, cols] (float32)."""
        raise NotImplementedError

    @property
    def factors(self) -> "tuple[Term, Term] | None":
        """Two matrices of which it is the product, that at the right first."""
        return None

    @property
    def of_columns(self) -> "tuple[Tensor, Term] | None":
        """The only columns that are not zero, and the matrix of these."""
        return None

    def record(self) -> "short.Record | None":
        """The matrix for one call of the compiled core; None where that does not multiply it."""
        return None

    def records(self) -> "list[short.Record] | None":
        """The matrices whose sum it is, as records."""
        one = self.record()
        return None if one is None else [one]

    @property
    def words(self) -> str:
        """What it is, for a table."""
        raise NotImplementedError

    @property
    def products(self) -> int:
        """Multiplications with a vector that its form takes."""
        return self.rows * self.cols

    def _keep(self, **values: Tensor | None) -> None:
        for name, value in values.items():
            self.register_buffer(name, value)

    def convolved(self, x: Tensor, geometry: "Geometry", bias: Tensor | None) -> Tensor:
        """The convolution of x [batch, in, ...] with the matrix as kernels [out, in / groups * kernel]."""
        return geometry.convolved(x, (self.rows, self.cols), self.block, bias)

    @property
    def exact(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Codes [rows, cols] (int64), scales of rows and of columns, where it is their product; else None."""
        return None

    @property
    def beside(self) -> int:
        """Bytes of memory beside its tensors."""
        return 0

    def check(self) -> None:
        """Raises BadInput for tensors that make no matrix: a kernel would read beyond them."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take tensors in the types and the order in memory that kernels read, and only those that make a matrix."""
        for name, own in self._buffers.items():
            given = state_dict.get(prefix + name)
            if own is not None and isinstance(given, Tensor):
                state_dict[prefix + name] = given.to(own.dtype).contiguous()
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.check()

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
    form: Tensor
    starts: Tensor
    where: Tensor
    values: Tensor

    def __init__(self, codes: Codes, size: int, width: tuple[int, int] | None = None) -> None:
        """size: bytes of an input. width: what `width_of` says of these codes, where it is known."""
        super().__init__()
        self.rows, self.cols = codes.codes.shape
        self.size = size
        self.group = codes.group if codes.scales.shape[1] > 1 else max(self.cols, 1)
        self.bits, self.corrected = width or width_of(codes)
        zeros = codes.zeros
        self._keep(
            data=torch.from_numpy(layout.packed(codes.codes.numpy(), self.bits)),
            scales=codes.scales.float().contiguous(),
            zeros=None if zeros is None else (zeros + (1 << self.bits - 1)).to(torch.int16).contiguous(),
            columns=None if codes.columns is None else codes.columns.float().contiguous(),
            form=torch.tensor([self.bits, self.group, self.cols], dtype=torch.int64, device="cpu"),
        )
        if self.corrected:
            missing = layout.clipped(codes.codes.numpy(), self.bits, self.corrected)
            starts, where, values = (torch.from_numpy(each) for each in missing)
            self._keep(starts=starts, where=where, values=values)

    def check(self) -> None:
        if self.form.is_meta:
            return
        if self.form.tolist() != [self.bits, self.group, self.cols]:
            raise BadInput(
                f"the state is that of codes of {self.form.tolist()} (bits, group, columns), and this layer has "
                f"{[self.bits, self.group, self.cols]}; load it into a network packed from the same file"
            )
        if self.corrected:
            _check_entries(self.starts, self.where.long(), self.values, self.cols)

    @property
    def _matrix(self) -> operators.Matrix:
        corrections = [self.starts, self.where, self.values] if self.corrected else []
        given = (corrections, self.bits, self.group, self.cols)
        return operators.Matrix(self.data, self.scales, self.zeros, self.columns, *given)

    def forward(self, x: Tensor) -> Tensor:
        if short.usual(x, self.cols, self.large):
            record = self.record()
            if record is not None:
                return short.product(x, self.rows, record)
        return operators.codes_product(x, self._matrix, self.size, self.large)

    def record(self) -> "short.Record | None":
        arrays = [self._buffers.get(name) for name in _CODES]  # to find attributes by name takes ten times as long
        kept: short.Record | None = self.__dict__.get("_kept")
        if kept is not None and kept[0] == short.places(arrays):
            return kept
        sizes = [self.rows, self.cols, self.scales.shape[1], self.group, self.bits, self.size]
        made = self.__dict__["_kept"] = short.codes(arrays, sizes)
        return made

    def restored(self, rows: Tensor | None = None) -> Tensor:
        if rows is None:
            return self._matrix.restored()
        return operators.codes_rows(rows, self._matrix)

    def block(self, first: int, last: int) -> Tensor:
        return blocks.codes_block(self._matrix, first, last)

    @property
    def exact(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        if self.scales.shape[1] > 1 or not self.data.is_cpu:
            return None
        codes = torch.from_numpy(reference.codes_of(self._matrix.arrays))
        return codes, self.scales[:, 0], self.columns

    @property
    def words(self) -> str:
        some = f", {self.corrected:,} corrected" if self.corrected else ""
        return f"{self.bits}-bit codes{some}" + ("" if self.size == 2 else f", {8 * self.size}-bit inputs")


class LevelsTerm(Term):
    """Packed places in a table of values; products are of floats, a block of rows at a time."""

    data: Tensor
    table: Tensor
    form: Tensor

    def __init__(self, levels: Levels, bits: int) -> None:
        super().__init__()
        self.rows, self.cols = levels.places.shape
        self.bits = bits
        codes = levels.places.numpy().astype(np.int16) - (1 << bits - 1)
        table = torch.zeros(1 << bits, dtype=torch.float32, device="cpu")  # places beyond the levels are never met
        table[: len(levels.values)] = levels.values
        self.used = len(levels.values)
        form = torch.tensor([bits, self.cols], dtype=torch.int64, device="cpu")
        self._keep(data=torch.from_numpy(layout.packed(codes, bits)), table=table, form=form)

    def check(self) -> None:
        if not self.form.is_meta and self.form.tolist() != [self.bits, self.cols]:
            raise BadInput(
                f"the state is that of places of {self.form.tolist()} (bits, columns), and this layer has "
                f"{[self.bits, self.cols]}; load it into a network packed from the same file"
            )

    def forward(self, x: Tensor) -> Tensor:
        check_cols(x, self.cols)
        operators.check_type(x, self.table)
        return blocks.levels_product(x, self.data, self.table, self.bits, self.cols)

    def restored(self, rows: Tensor | None = None) -> Tensor:
        if rows is None:
            return self.block(0, self.rows)
        return blocks.levels_rows(rows, self.data, self.table, self.bits, self.cols)

    def block(self, first: int, last: int) -> Tensor:
        return blocks.levels(self.data[first:last], self.table, self.bits, self.cols)

    @property
    def words(self) -> str:
        return f"{self.used} values, places of {self.bits} bits"


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

    def check(self) -> None:
        if not self.starts.is_meta:
            _check_entries(self.starts, operators.columns_of(self.where), self.values, self.cols)

    def record(self) -> "short.Record | None":
        own = self._buffers
        starts, where, values = own["starts"], own["where"], own["values"]
        if starts is None or where is None or values is None or not values.is_cpu:
            return None
        places = [starts.data_ptr(), where.data_ptr(), values.data_ptr()]
        return places, [self.rows, self.cols, int(where.dtype is torch.int16)]

    def forward(self, x: Tensor) -> Tensor:
        check_cols(x, self.cols)
        return operators.entries_product(x, self.starts, self.where, self.values)

    def restored(self, rows: Tensor | None = None) -> Tensor:
        if rows is None:
            return operators.entries(self.starts, self.where, self.values, self.cols)
        return operators.some_entries(rows, self.starts, self.where, self.values, self.cols)

    def block(self, first: int, last: int) -> Tensor:
        return blocks.entries_block(self.starts, self.where, self.values, self.cols, (first, last))

    @property
    def products(self) -> int:
        return self.values.numel()

    @property
    def words(self) -> str:
        return f"{len(self.values):,} entries"


def check_cols(x: Tensor, cols: int) -> None:
    """Raises BadInput for inputs of another width: a kernel would read what is not theirs."""
    if x.shape[-1] != cols:
        raise BadInput(f"inputs of {x.shape[-1]} features do not fit a packed layer of {cols}")


def _check_entries(starts: Tensor, columns: Tensor, values: Tensor, cols: int) -> None:
    """Raises BadInput unless entries lie in the matrix, row by row."""
    inside = not len(columns) or (int(columns.min()) >= 0 and int(columns.max()) < cols)
    ends = starts.tolist()[:1] + starts.tolist()[-1:]
    if not (inside and ends == [0, len(values)] and len(columns) == len(values) and bool((starts.diff() >= 0).all())):
        raise BadInput("the state of a packed layer is damaged: entries lie outside of its matrix")
