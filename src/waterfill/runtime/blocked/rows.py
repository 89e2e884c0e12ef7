"""Rows of packed matrices, restored, as operators of PyTorch; they run on every device.

`torch.ops.waterfill.codes_block` and `entries_block` restore the rows from a first up to before a last one, `levels`
all rows that it is given, and `levels_rows` some of them; `levels_product` multiplies without more than a block of them
in memory.
"""

from typing import Any

import torch
from torch import Tensor

from waterfill.runtime.batching import over_batches
from waterfill.runtime.blocked import restore
from waterfill.runtime.blocked.crossover import Kind, crossover
from waterfill.runtime.blocked.product import product
from waterfill.runtime.matrix import Matrix, check_rows, entries, runs_here, stored_codes

_LIBRARY = torch.library.Library("waterfill", "FRAGMENT")
_MATRIX = "Tensor data, Tensor scales, Tensor? zeros, Tensor? columns, Tensor[] corrections, int bits, int group"
_ENTRIES = "Tensor starts, Tensor where, Tensor values"
_LIBRARY.define(f"codes_block({_MATRIX}, int cols, int first, int last) -> Tensor")
_LIBRARY.define(f"entries_block({_ENTRIES}, int cols, int first, int last) -> Tensor")
_LIBRARY.define("levels(Tensor data, Tensor table, int bits, int cols) -> Tensor")
_LIBRARY.define("levels_rows(Tensor index, Tensor data, Tensor table, int bits, int cols) -> Tensor")
_LIBRARY.define("levels_product(Tensor x, Tensor data, Tensor table, int bits, int cols) -> Tensor")


def codes_block(matrix: Matrix, first: int, last: int) -> Tensor:
    """Rows of a matrix of codes, restored: [last - first, cols] (float32)."""
    if runs_here(matrix.data):
        return matrix.rows(first, last)
    made: Tensor = torch.ops.waterfill.codes_block(*matrix.fields, first, last)
    return made


def entries_block(starts: Tensor, where: Tensor, values: Tensor, cols: int, span: tuple[int, int]) -> Tensor:
    """Rows of a sparse matrix, restored: [last - first, cols] (float32)."""
    if runs_here(values):
        return _entries_block(starts, where, values, cols, *span)
    made: Tensor = torch.ops.waterfill.entries_block(starts, where, values, cols, *span)
    return made


def levels(data: Tensor, table: Tensor, bits: int, cols: int) -> Tensor:
    """The values of a table [2^bits] at packed places [rows, row bytes]: [rows, cols] (float32)."""
    if runs_here(data):
        return _levels(data, table, bits, cols)
    made: Tensor = torch.ops.waterfill.levels(data, table, bits, cols)
    return made


def levels_rows(index: Tensor, data: Tensor, table: Tensor, bits: int, cols: int) -> Tensor:
    """Rows `index` [n] (int64) of that matrix. Raises BadInput for others."""
    if runs_here(index):
        return _levels_rows(index, data, table, bits, cols)
    made: Tensor = torch.ops.waterfill.levels_rows(index, data, table, bits, cols)
    return made


def levels_product(x: Tensor, data: Tensor, table: Tensor, bits: int, cols: int) -> Tensor:
    """x [..., cols] times that matrix: [..., rows], in the type of x. What fits is to be checked before."""
    if runs_here(x):
        return _levels_product(x, data, table, bits, cols)
    made: Tensor = torch.ops.waterfill.levels_product(x, data, table, bits, cols)
    return made


def _codes_block(*given: Any) -> Tensor:
    return Matrix(*given[:-2]).rows(*given[-2:])


def _entries_block(starts: Tensor, where: Tensor, values: Tensor, cols: int, *span: int) -> Tensor:
    first, last = span
    begin, end = int(starts[first]), int(starts[last])
    return entries(starts[first : last + 1] - begin, where[begin:end], values[begin:end], cols)


def _levels(data: Tensor, table: Tensor, bits: int, cols: int) -> Tensor:
    if data.is_cpu:
        return restore.levels(data.contiguous(), table, bits, cols)
    return table[stored_codes(data, cols, bits).long()]


def _levels_rows(index: Tensor, data: Tensor, *given: Any) -> Tensor:
    check_rows(index, len(data))
    return _levels(data[index], *given)


def _levels_product(x: Tensor, data: Tensor, table: Tensor, bits: int, cols: int) -> Tensor:
    shape, dtype = (len(data), cols), x.dtype
    if x.is_cpu and dtype.itemsize < torch.float32.itemsize:
        dtype = crossover(Kind.of(shape, bits, 2, dtype))[1]
    return product(x, shape, lambda first, last: _levels(data[first:last], table, bits, cols), dtype)


def _block_shape(*given: Any) -> Tensor:
    cols, first, last = given[-3:]
    return torch.empty(last - first, cols, dtype=torch.float32, device=given[0].device)


def _levels_shape(data: Tensor, table: Tensor, bits: int, cols: int) -> Tensor:
    return torch.empty(data.shape[0], cols, dtype=torch.float32, device=data.device)


def _rows_shape(index: Tensor, data: Tensor, *numbers: Any) -> Tensor:
    return torch.empty(index.shape[0], numbers[-1], dtype=torch.float32, device=data.device)


def _product_shape(x: Tensor, data: Tensor, *_: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], data.shape[0]))


for _name, _run, _shape in (
    ("codes_block", _codes_block, _block_shape),
    ("entries_block", _entries_block, _block_shape),
    ("levels", _levels, _levels_shape),
    ("levels_rows", _levels_rows, _rows_shape),
    ("levels_product", _levels_product, _product_shape),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"waterfill::{_name}", _shape, lib=_LIBRARY)
for _name in ("levels_rows", "levels_product"):
    over_batches(_LIBRARY, _name)
