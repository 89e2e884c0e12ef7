"""The products of compressed weights as operators of PyTorch: eager, compiled and exported alike.

`torch.ops.waterfill.codes_product` and `entries_product` run the compiled core on a CPU, to the bit the same on every
machine; where it was not built, the reference. Large batches of inputs are multiplied as floats by blocks of restored
rows, see `blocked`. On other devices the matrix is restored and multiplied, in the type of the inputs.
"""

from typing import Any

import torch
from torch import Tensor

from waterfill.coding import native
from waterfill.errors import BadInput
from waterfill.runtime import layout, reference, short
from waterfill.runtime.batching import over_batches
from waterfill.runtime.blocked import crossover, product
from waterfill.runtime.matrix import Matrix, check_rows, columns_of, entries, of_rows, runs_here

_LIBRARY = torch.library.Library("waterfill", "DEF")
_MATRIX = "Tensor data, Tensor scales, Tensor? zeros, Tensor? columns, Tensor[] corrections, int bits, int group"
_LIBRARY.define(f"codes_product(Tensor x, {_MATRIX}, int cols, int size, int large) -> Tensor")
_LIBRARY.define(f"codes_rows(Tensor index, {_MATRIX}, int cols) -> Tensor")
_LIBRARY.define("entries_product(Tensor x, Tensor starts, Tensor where, Tensor values) -> Tensor")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def codes_product(x: Tensor, matrix: Matrix, size: int, large: int = 0) -> Tensor:
    """x [..., cols] times a matrix of codes: [..., rows], in the type of x.

    size: bytes of an input as an integer, 1 to 3. large: inputs from which they are multiplied as floats; 0 for as many
    as this machine needs for that to be faster. With fewer, an output is off by at most half of an input's unit (its
    largest magnitude times column scale, over 127, 32,512 or 8,323,072) times the sum of the row's magnitudes, and by
    the rounding of float32. Raises BadInput for inputs of another width, device or type.
    """
    if runs_here(x):
        return _multiplied(x, matrix, size, large)
    made: Tensor = torch.ops.waterfill.codes_product(x, *matrix.fields, size, large)
    return made


def some_entries(rows: Tensor, starts: Tensor, where: Tensor, values: Tensor, cols: int) -> Tensor:
    """Rows [n] (int64) of a sparse matrix, restored: [n, cols] (float32)."""
    if not runs_here(rows):  # the number of entries is not known before it runs
        return entries(starts, where, values, cols)[rows]
    starts, where, values = of_rows([starts, where, values], rows)
    return entries(starts, where, values, cols)


def codes_rows(index: Tensor, matrix: Matrix) -> Tensor:
    """Rows `index` [n] (int64) of a matrix of codes, restored: [n, cols] (float32). Raises BadInput for others."""
    if runs_here(index):
        return _rows(index, *matrix.fields)
    made: Tensor = torch.ops.waterfill.codes_rows(index, *matrix.fields)
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


def _product(x: Tensor, *given: Any) -> Tensor:
    """Of codes, on a CPU."""
    *arrays, corrections, bits, group, cols, size, large = given
    if short.usual(x, cols, large):
        rows, groups = arrays[0].shape[0], arrays[1].shape[1]
        record = short.codes([*arrays, *corrections], [rows, cols, groups, group, bits, size])
        if record is not None:
            return short.product(x, rows, record)
    return _multiplied(x, Matrix(*given[:-2]), size, large)


def _multiplied(x: Tensor, matrix: Matrix, size: int, large: int) -> Tensor:
    _check(x, matrix)
    batch = x.numel() // max(1, matrix.cols)
    if batch >= (large or crossover.LEAST):
        shape = (matrix.data.shape[0], matrix.cols)
        least, dtype = crossover.crossover(crossover.Kind.of(shape, matrix.bits, size, x.dtype))
        if large or batch >= least:
            return product.product(x, shape, matrix.rows, dtype)
    return by_integers(x, matrix, size)


def by_integers(x: Tensor, matrix: Matrix, size: int) -> Tensor:
    """As `codes_product`, by the integer kernels, on a CPU; what fits is not checked."""
    flat, rows = _plain(x), matrix.data.shape[0]
    out = torch.empty(*x.shape[:-1], rows, dtype=torch.float32, device="cpu")
    batch = out.numel() // max(1, rows)
    if native.core is None:
        plain = flat.view(batch, matrix.cols).numpy()
        out = torch.from_numpy(reference.product(plain, matrix.arrays, size)).view(out.shape)
    else:
        arrays = (flat, out, matrix.data, matrix.scales, matrix.zeros, matrix.columns)
        places = [0 if v is None else v.data_ptr() for v in (*arrays, *(matrix.corrections or (None, None, None)))]
        sizes = [batch, rows, matrix.cols, matrix.scales.shape[1], matrix.group]
        native.core.codes_product(places, sizes, matrix.bits, size, torch.get_num_threads())
    return out if x.dtype == torch.float32 else out.to(x.dtype)


def _restored_product(x: Tensor, *given: Any) -> Tensor:
    """Of codes, on other devices."""
    matrix = Matrix(*given[:-2])
    _check(x, matrix)
    return x @ matrix.restored().to(x.dtype).T


def _rows(index: Tensor, *given: Any) -> Tensor:
    matrix = Matrix(*given)
    check_rows(index, len(matrix.data))
    return matrix.some(index).restored()


def _entries(x: Tensor, starts: Tensor, where: Tensor, values: Tensor) -> Tensor:
    """Of a sparse matrix, on a CPU."""
    check_type(x, values)
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
    check_type(x, values)
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
    over_batches(_LIBRARY, _name)


def _plain(x: Tensor) -> Tensor:
    """The same inputs as contiguous float32, which share no gradients."""
    return (x if x.dtype == torch.float32 else x.to(torch.float32)).detach().contiguous()


def check_type(x: Tensor, own: Tensor) -> None:
    """Raises BadInput for inputs of another sort or device than a packed layer with the tensor `own` takes."""
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
    check_type(x, matrix.data)
    if x.shape[-1] != matrix.cols:
        raise BadInput(f"inputs of {x.shape[-1]} features do not fit a packed layer of {matrix.cols}")
    if layout.row_bytes(matrix.cols, matrix.bits) != matrix.data.shape[1]:
        raise BadInput(f"a packed layer of {matrix.cols} features whose rows have {matrix.data.shape[1]} bytes")
