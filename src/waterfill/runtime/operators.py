"""The products of compressed weights as operators of PyTorch: eager, compiled and exported alike.

`torch.ops.waterfill.codes_product` and `entries_product` run the compiled core on a CPU, to the bit the same on every
machine; where it was not built, the reference. On other devices the matrix is restored and multiplied, in the type of
the inputs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from waterfill.coding import native
from waterfill.errors import BadInput
from waterfill.runtime import layout, reference

_LIBRARY = torch.library.Library("waterfill", "DEF")
_MATRIX = "Tensor data, Tensor scales, Tensor? zeros, Tensor? columns, Tensor[] corrections, int bits, int group"
_LIBRARY.define(f"codes_product(Tensor x, {_MATRIX}, int cols, int size) -> Tensor")
_LIBRARY.define(f"codes_rows(Tensor index, {_MATRIX}, int cols) -> Tensor")
_LIBRARY.define("entries_product(Tensor x, Tensor starts, Tensor where, Tensor values) -> Tensor")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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

    def some(self, rows: Tensor) -> "Matrix":
        """Some rows [n] (int64) of the matrix."""
        zeros = None if self.zeros is None else self.zeros[rows]
        corrections = _of_rows(self.corrections, rows) if self.corrections else []
        given = (self.columns, corrections, self.bits, self.group, self.cols)
        return Matrix(self.data[rows], self.scales[rows], zeros, *given)

    def restored(self) -> Tensor:
        """The matrix [rows, cols] (float32), on its device."""
        here = runs_here(self.data)
        return torch.from_numpy(reference.restored(self.arrays)) if here else restored_by_torch(self)


def restored_by_torch(matrix: Matrix) -> Tensor:
    """The matrix [rows, cols] (float32) on any device."""
    codes = _separate(matrix.data, matrix.cols, matrix.bits).float()
    groups = torch.arange(matrix.cols, dtype=torch.int64, device=codes.device) // matrix.group
    codes -= matrix.zeros.float()[:, groups] if matrix.zeros is not None else 1 << matrix.bits - 1
    if matrix.corrections:
        starts, where, values = matrix.corrections
        codes += entries(starts.long(), where, values.float(), matrix.cols)
    codes *= matrix.scales[:, groups]
    return codes if matrix.columns is None else codes * matrix.columns


def codes_product(x: Tensor, matrix: Matrix, size: int) -> Tensor:
    """x [..., cols] times a matrix of codes: [..., rows], in the type of x.

    size: bytes of an input as an integer, 1 or 2. An output is off by at most half of an input's unit (its largest
    magnitude times column scale, over 127 or 32,512) times the sum of the row's magnitudes, and by the rounding of
    float32. Raises BadInput for inputs of another width, device or type.
    """
    if runs_here(x):
        return _multiplied(x, matrix, size)
    made: Tensor = torch.ops.waterfill.codes_product(x, *_flat(matrix), size)
    return made


def some_entries(rows: Tensor, starts: Tensor, where: Tensor, values: Tensor, cols: int) -> Tensor:
    """Rows [n] (int64) of a sparse matrix, restored: [n, cols] (float32)."""
    if not runs_here(rows):  # the number of entries is not known before it runs
        return entries(starts, where, values, cols)[rows]
    starts, where, values = _of_rows([starts, where, values], rows)
    return entries(starts, where, values, cols)


def codes_rows(index: Tensor, matrix: Matrix) -> Tensor:
    """Rows `index` [n] (int64) of a matrix of codes, restored: [n, cols] (float32). Raises BadInput for others."""
    if runs_here(index):
        return _rows(index, *_flat(matrix))
    made: Tensor = torch.ops.waterfill.codes_rows(index, *_flat(matrix))
    return made


def entries_product(x: Tensor, starts: Tensor, where: Tensor, values: Tensor) -> Tensor:
    """x [..., cols] times a sparse matrix: [..., rows], in the type of x.

    starts: [rows + 1], int64. where: [entries], columns, int32, or int16 that stands for uint16. values: [entries],
    float32. The caller answers for the number of columns.
    """
    if runs_here(x):
        return _entries(x, starts, where, values)
    made: Tensor = torch.ops.waterfill.entries_product(x, starts, where, values)
    return made


def entries(starts: Tensor, where: Tensor, values: Tensor, cols: int) -> Tensor:
    """The matrix [rows, cols] (float32) of its entries."""
    counts = starts[1:] - starts[:-1]
    rows = torch.repeat_interleave(torch.arange(len(counts), dtype=torch.int64, device=starts.device), counts)
    whole = torch.zeros(len(counts), cols, dtype=torch.float32, device=starts.device)
    return whole.index_put_((rows, columns_of(where)), values)


def _product(x: Tensor, *given: Any) -> Tensor:
    """Of codes, on a CPU."""
    return _multiplied(x, Matrix(*given[:-1]), given[-1])


def _multiplied(x: Tensor, matrix: Matrix, size: int) -> Tensor:
    _check(x, matrix)
    flat, rows = _plain(x), matrix.data.shape[0]
    out = torch.empty(*x.shape[:-1], rows, dtype=torch.float32, device="cpu")
    batch = out.numel() // max(1, rows)
    if native.core is None:
        out = torch.from_numpy(reference.product(flat.view(batch, -1).numpy(), matrix.arrays, size)).view(out.shape)
    else:
        arrays = (flat, out, matrix.data, matrix.scales, matrix.zeros, matrix.columns)
        places = [0 if v is None else v.data_ptr() for v in (*arrays, *(matrix.corrections or (None, None, None)))]
        sizes = [batch, rows, matrix.cols, matrix.scales.shape[1], matrix.group]
        native.core.codes_product(places, sizes, matrix.bits, size, torch.get_num_threads())
    return out if x.dtype == torch.float32 else out.to(x.dtype)


def _restored_product(x: Tensor, *given: Any) -> Tensor:
    """Of codes, on other devices."""
    matrix = Matrix(*given[:-1])
    _check(x, matrix)
    return x @ matrix.restored().to(x.dtype).T


def _rows(index: Tensor, *given: Any) -> Tensor:
    matrix = Matrix(*given)
    check_rows(index, len(matrix.data))
    return matrix.some(index).restored()


def check_rows(index: Tensor, rows: int) -> None:
    """Raises BadInput for rows that are not there."""
    if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < rows):
        raise BadInput(f"rows {int(index.min())} to {int(index.max())} are asked for; there are 0 to {rows - 1}")


def _entries(x: Tensor, starts: Tensor, where: Tensor, values: Tensor) -> Tensor:
    """Of a sparse matrix, on a CPU."""
    _check_type(x, values)
    flat, rows, cols = _plain(x), starts.shape[0] - 1, x.shape[-1]
    out = torch.empty(*x.shape[:-1], rows, dtype=torch.float32, device="cpu")
    batch = out.numel() // max(1, rows)
    if native.core is None:
        given = (starts.numpy(), columns_of(where).numpy(), values.numpy())
        out = torch.from_numpy(reference.entries_product(flat.view(batch, cols).numpy(), *given)).view(out.shape)
    else:
        places = [v.data_ptr() for v in (flat, out, starts, where, values)]
        narrow = where.dtype == torch.int16
        native.core.entries_product(places, [batch, rows, cols], narrow, torch.get_num_threads())
    return out if x.dtype == torch.float32 else out.to(x.dtype)


def _restored_entries(x: Tensor, starts: Tensor, where: Tensor, values: Tensor) -> Tensor:
    """Of a sparse matrix, on other devices."""
    _check_type(x, values)
    return x @ entries(starts, where, values, x.shape[-1]).to(x.dtype).T


def _product_shape(x: Tensor, data: Tensor, *_: Any) -> Tensor:
    """What `torch.compile` and `torch.export` see."""
    return x.new_empty((*x.shape[:-1], data.shape[0]))


def _rows_shape(index: Tensor, data: Tensor, *numbers: Any) -> Tensor:
    return torch.empty(index.shape[0], numbers[-1], dtype=torch.float32, device=data.device)


def _entries_shape(x: Tensor, starts: Tensor, *_: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], starts.shape[0] - 1))


for _name, _on_cpu, _elsewhere, _shape in (
    ("codes_product", _product, _restored_product, _product_shape),
    ("codes_rows", _rows, _rows, _rows_shape),
    ("entries_product", _entries, _restored_entries, _entries_shape),
):
    _LIBRARY.impl(_name, _on_cpu, "CPU")
    _LIBRARY.impl(_name, _elsewhere, "CompositeExplicitAutograd")
    torch.library.register_fake(f"waterfill::{_name}", _shape, lib=_LIBRARY)


def runs_here(x: Tensor) -> bool:
    """Whether nothing looks on, such as a compiler: then an operator's way through the dispatcher, which takes longer
    than a small product, is left out."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or not x.is_cpu or torch.jit.is_tracing():
        return False
    return torch._C._len_torch_dispatch_stack() == 0 and torch._C._functorch.peek_interpreter_stack() is None


def _flat(matrix: Matrix) -> tuple[Any, ...]:
    """The fields, which operators take one by one."""
    return (
        *(matrix.data, matrix.scales, matrix.zeros, matrix.columns, matrix.corrections),
        *(matrix.bits, matrix.group, matrix.cols),
    )


def _of_rows(corrections: list[Tensor], rows: Tensor) -> list[Tensor]:
    """The corrections of some rows."""
    starts, where, values = corrections
    counts = (starts[1:] - starts[:-1])[rows].long()
    ends = counts.cumsum(0)
    inside = torch.arange(int(counts.sum()), dtype=torch.int64, device=rows.device)
    places = inside + torch.repeat_interleave(starts[:-1][rows].long() - (ends - counts), counts)
    begin = torch.zeros(1, dtype=torch.int64, device=rows.device)
    return [torch.cat([begin, ends]).to(starts.dtype), where[places], values[places]]


def _separate(data: Tensor, cols: int, bits: int) -> Tensor:
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


def _plain(x: Tensor) -> Tensor:
    """The same inputs as contiguous float32, which share no gradients."""
    return (x if x.dtype == torch.float32 else x.to(torch.float32)).detach().contiguous()


def _check_type(x: Tensor, own: Tensor) -> None:
    if x.dtype not in _FLOATS:
        raise BadInput(f"packed layers take floating-point inputs, and these are {x.dtype}")
    if x.requires_grad and torch.is_grad_enabled():
        raise BadInput(
            "a packed layer has no gradients, and its inputs require them; run it in torch.no_grad(), or detach them"
        )
    if x.device != own.device:  # such as meta
        raise BadInput(f"the inputs are on {x.device} and the packed layer on {own.device}; move one of them")


def _check(x: Tensor, matrix: Matrix) -> None:
    """Raises BadInput for inputs that do not fit the matrix, and for a matrix that does not fit itself."""
    _check_type(x, matrix.data)
    if x.shape[-1] != matrix.cols:
        raise BadInput(f"inputs of {x.shape[-1]} features do not fit a packed layer of {matrix.cols}")
    if layout.row_bytes(matrix.cols, matrix.bits) != matrix.data.shape[1]:
        raise BadInput(f"a packed layer of {matrix.cols} features whose rows have {matrix.data.shape[1]} bytes")
