"""Products with matrices of which a block of rows is restored at a time."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

ENTRIES = 1 << 20
"""Entries that are restored at a time: 4 MiB as float32."""
Rows = Callable[[int, int], Tensor]
"""Restores rows from a first one up to before a last one: [rows, cols] (float32)."""


def spans(rows: int, cols: int, inputs: int) -> Iterator[tuple[int, int]]:
    """The blocks of a matrix: the first row of each, and the row behind its last. A block has at most a quarter of the
    numbers that the inputs have, where these are very many: with each block a library arranges the inputs anew."""
    count = -(-rows // max(1, ENTRIES // cols, inputs // 4))
    each = max(1, -(-rows // max(1, count)))  # blocks of one size: a last thin one would be slow
    for first in range(0, rows, each):
        yield first, min(first + each, rows)


def product(x: Tensor, shape: tuple[int, int], restored: Rows, dtype: torch.dtype) -> Tensor:
    """x [..., cols] times a matrix of `shape` [rows, cols]: [..., rows], in the type of x, multiplied in `dtype`."""
    rows, cols = shape
    if rows * cols <= ENTRIES and not torch.is_autocast_enabled(x.device.type):  # which would round the weights
        return F.linear(x.to(dtype), restored(0, rows).to(dtype)).to(x.dtype)
    flat = x.detach().reshape(-1, cols).to(dtype)
    out = torch.empty(len(flat), rows, dtype=dtype, device=x.device)
    for first, last in spans(rows, cols, len(flat)):
        torch.mm(flat, restored(first, last).to(dtype).T, out=out[:, first:last])
    return out.to(x.dtype).view(*x.shape[:-1], rows)
