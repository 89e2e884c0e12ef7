"""The short way to the kernels: one or a few plain inputs, at which nothing looks on.

A product of a small matrix takes 10 microseconds, and so does the way to it through checks, views and PyTorch's
dispatcher. Here what is usual is asked for in a few comparisons, and one call of the compiled core does the rest.
Outputs are those of the long way, to the bit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from waterfill.coding import native
from waterfill.coding.codes.widths import row_bytes
from waterfill.runtime.blocked.crossover import LEAST
from waterfill.runtime.matrix import runs_here

Record = tuple[list[int], list[int]]
"""A matrix for the compiled core: addresses and sizes, as `native/kernels/sum.cpp` describes them."""


def usual(x: Tensor, cols: int, large: int) -> bool:
    """Whether x are few contiguous float32 inputs [..., cols] on a CPU, without gradients, and may go the short way.

    large: as of a term, inputs from which they are multiplied as floats.
    """
    return (
        runs_here(x)  # which a compiler must meet first
        and x.dtype is torch.float32
        and not x.requires_grad
        and x.shape[-1] == cols
        and 0 < x.numel() < (large or LEAST) * cols
        and x.is_contiguous()
        and native.core is not None
    )


def codes(arrays: Sequence[Tensor | None], sizes: list[int]) -> Record | None:
    """The record of a matrix of small codes; None where its rows are not of the bytes that they must have.

    arrays: data, scales, zero points or None, scales of columns or None, and the three of corrections, if any. sizes:
    rows, cols, groups, columns of a group, bits, and bytes of an input.
    """
    data = arrays[0]
    if data is None or not data.is_cpu or data.shape[1] != row_bytes(sizes[1], sizes[4]):
        return None
    return places(arrays), sizes


def places(arrays: Sequence[Tensor | None]) -> list[int]:
    """The seven addresses of a matrix of small codes."""
    found = [0 if each is None else each.data_ptr() for each in arrays]
    return found if len(found) > 4 else [*found, 0, 0, 0]


def product(x: Tensor, rows: int, record: Record) -> Tensor:
    """Few inputs [..., cols] times a matrix of codes: [..., rows]."""
    shape = x.shape
    out = torch.empty((*shape[:-1], rows), dtype=torch.float32, device="cpu")
    arrays, (_, cols, groups, group, bits, size) = record
    sizes = [x.numel() // cols, rows, cols, groups, group]
    assert native.core is not None  # `usual` has asked
    native.core.codes_product([x.data_ptr(), out.data_ptr(), *arrays], sizes, bits, size, torch.get_num_threads())
    return out


def total(x: Tensor, rows: int, records: Sequence[Record]) -> Tensor:
    """One input [..., cols] times a sum of matrices: [..., rows]."""
    out = torch.empty((*x.shape[:-1], rows), dtype=torch.float32, device="cpu")
    assert native.core is not None
    native.core.sum_product([x.data_ptr(), out.data_ptr()], records, torch.get_num_threads())
    return out
