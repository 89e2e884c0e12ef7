"""Packed matrices as tensors, and what restores them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from waterfill.errors import BadInput
from waterfill.runtime import layout, reference
from waterfill.runtime.blocked import restore


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix of small codes as tensors; each is as in `reference.Arrays`, corrections a list of three or of none."""

    data: Tensor
    scales: Tensor
    zeros: Tensor | None
    columns: Tensor | None
    corrections: list[Tensor]
    bits: int
    group: int
    cols: int

    @property
    def arrays(self) -> reference.Arrays:
        """The same on a CPU, for the reference."""
        zeros, columns = (None if v is None else v.numpy() for v in (self.zeros, self.columns))
        corrections = [v.numpy() for v in self.corrections] or None
        numbers = (self.group, self.cols, self.bits)
        return reference.Arrays(self.data.numpy(), self.scales.numpy(), zeros, columns, corrections, *numbers)

    @property
    def fields(self) -> tuple[Any, ...]:
        """The fields, which operators take one by one."""
        own = (self.data, self.scales, self.zeros, self.columns, self.corrections)
        return (*own, self.bits, self.group, self.cols)

    def some(self, rows: Tensor) -> "Matrix":
        """Some rows [n] (int64) of the matrix."""
        zeros = None if self.zeros is None else self.zeros[rows]
        corrections = of_rows(self.corrections, rows) if self.corrections else []
        given = (self.columns, corrections, self.bits, self.group, self.cols)
        return Matrix(self.data[rows], self.scales[rows], zeros, *given)

    def rows(self, first: int, last: int) -> Tensor:
        """Rows from the first up to before the last, restored: [rows, cols] (float32)."""
        if first == 0 and last == len(self.data):
            return self._restored()
        corrections = self.corrections
        if corrections:
            begin, end = int(corrections[0][first]), int(corrections[0][last])
            starts, where, values = corrections
            corrections = [starts[first : last + 1] - begin, where[begin:end], values[begin:end]]
        zeros = None if self.zeros is None else self.zeros[first:last]
        given = (self.columns, corrections, self.bits, self.group, self.cols)
        return Matrix(self.data[first:last], self.scales[first:last], zeros, *given)._restored()

    def restored(self) -> Tensor:
        """The matrix [rows, cols] (float32), on its device."""
        return self._restored() if runs_here(self.data) else restored_by_torch(self)

    def _restored(self) -> Tensor:
        if not self.data.is_cpu:
            return restored_by_torch(self)
        arrays = (self.data, self.scales, self.zeros, self.columns, *self.corrections)
        return restore.codes(arrays, self.bits, self.group, self.cols)


def restored_by_torch(matrix: Matrix) -> Tensor:
    """The matrix [rows, cols] (float32) on any device."""
    codes = stored_codes(matrix.data, matrix.cols, matrix.bits).float()
    groups = torch.arange(matrix.cols, dtype=torch.int64, device=codes.device) // matrix.group
    codes -= matrix.zeros.float()[:, groups] if matrix.zeros is not None else 1 << matrix.bits - 1
    if matrix.corrections:
        starts, where, values = matrix.corrections
        codes += entries(starts.long(), where, values.float(), matrix.cols)
    codes *= matrix.scales[:, groups]
    return codes if matrix.columns is None else codes * matrix.columns


def entries(starts: Tensor, where: Tensor, values: Tensor, cols: int) -> Tensor:
    """The matrix [rows, cols] (float32) of its entries."""
    counts = starts[1:] - starts[:-1]
    numbers = torch.arange(len(counts), dtype=torch.int64, device=starts.device)
    rows = torch.repeat_interleave(numbers, counts, output_size=len(values))
    whole = torch.zeros(len(counts), cols, dtype=torch.float32, device=starts.device)
    return whole.index_put_((rows, columns_of(where)), values)


def runs_here(x: Tensor) -> bool:
    """Whether nothing looks on, such as a compiler: then an operator's way through the dispatcher, which takes longer
    than a small product, is left out."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or not x.is_cpu or torch.jit.is_tracing():
        return False
    return torch._C._len_torch_dispatch_stack() == 0 and torch._C._functorch.peek_interpreter_stack() is None


def check_rows(index: Tensor, rows: int) -> None:
    """Raises BadInput for rows that are not there."""
    if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < rows):
        raise BadInput(f"rows {int(index.min())} to {int(index.max())} are asked for; there are 0 to {rows - 1}")


def of_rows(entries_of: list[Tensor], rows: Tensor) -> list[Tensor]:
    """The entries of some rows [n] (int64): starts, columns and values."""
    starts, where, values = entries_of
    counts = (starts[1:] - starts[:-1])[rows].long()
    ends = counts.cumsum(0)
    inside = torch.arange(int(counts.sum()), dtype=torch.int64, device=rows.device)
    places = inside + torch.repeat_interleave(starts[:-1][rows].long() - (ends - counts), counts)
    begin = torch.zeros(1, dtype=torch.int64, device=rows.device)
    return [torch.cat([begin, ends]).to(starts.dtype), where[places], values[places]]


def stored_codes(data: Tensor, cols: int, bits: int) -> Tensor:
    """The stored codes [rows, cols] (uint8) of packed bytes, see `layout`."""

    def fields(lines: Tensor, width: int, each: int) -> Tensor:
        shifts = torch.arange(0, 8, each, dtype=torch.uint8, device=data.device)[:, None]
        apart = lines.reshape(*lines.shape[:2], -1, 1, width) >> shifts & ((1 << each) - 1)
        return apart.reshape(*lines.shape[:2], -1)

    lower, upper, first = layout.fields_of(bits)
    blocks = data.reshape(len(data), -1, layout.block_bytes(bits))
    codes = fields(blocks[..., :first], 32, lower)
    if upper:
        codes = codes | fields(blocks[..., first:], 16, upper) << lower
    return codes.reshape(len(data), -1)[:, :cols]


def columns_of(where: Tensor) -> Tensor:
    """Columns [entries] (int64) as they are stored: int32, or int16 that stands for uint16."""
    return where.long() & 0xFFFF if where.dtype == torch.int16 else where.long()
