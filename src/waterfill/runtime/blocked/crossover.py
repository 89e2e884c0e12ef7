"""From how many inputs on blocks of restored rows are faster than integer kernels: measured once on a machine.

Instruction sets and libraries differ too much for a number that is good everywhere. A few milliseconds, spent at the
first batch that could be large, say what a kernel takes for an input, what a product of floats takes, and what it costs
to restore the rows; the three make the number of inputs from which restoring pays. It is a power of two, so that it is
nearly always the same on the same machine. What is timed is one thread at work, from which other programs take little
away, and threads help all three alike.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TypeVar

import torch
from torch import Tensor

from waterfill.runtime.blocked.product import Rows, product
from waterfill.runtime.measured.machine import machine
from waterfill.storage import measured

T = TypeVar("T")
LEAST = 8
"""Batches below are never large."""
NEVER = 1 << 62
_ROUNDS, _LEAST_ROUNDS, _SECONDS = 20, 5, 10e-3  # of all that is timed: so many, fewer where they take longer
_ROWS, _COLS = (32, 256), (32, 1024)  # rows of the two matrices that are timed; the least and the most columns
_FEW, _MANY = 16, 64  # inputs by which the kernel is timed; many ones by which the product of floats is


@dataclass(frozen=True)
class Kind:
    """What the number depends on. rows, cols: powers of two. bits: of a code. size: bytes of an input as an integer.
    dtype: of the inputs."""

    rows: int
    cols: int
    bits: int
    size: int
    dtype: torch.dtype

    @classmethod
    def of(cls, shape: tuple[int, int], bits: int, size: int, dtype: torch.dtype) -> "Kind":
        """That of a matrix of `shape` [rows, cols]."""
        rows, cols = (1 << (max(1, n) - 1).bit_length() for n in shape)
        return cls(max(_ROWS[0], rows), min(_COLS[1], max(_COLS[0], cols)), bits, size, dtype)


@cache
def crossover(kind: Kind) -> tuple[int, torch.dtype]:
    """How many inputs a large batch has at least, and the type in which it is multiplied: the fastest of `_types`.

    Measured, unless an earlier process has kept it (`storage.measured`).
    """
    key, here = f"large batches of {kind}", machine()
    known = {str(dtype): dtype for dtype in _types(kind)}
    match measured.recall(here, key):
        case [int(inputs), str(name)] if name in known and LEAST <= inputs <= NEVER:
            return inputs, known[name]
    inputs, dtype = _found(kind)
    measured.remember(here, key, [inputs, str(dtype)])
    return inputs, dtype


def _found(kind: Kind) -> tuple[int, torch.dtype]:
    """The same, by measurement."""
    least, most = (_measured(replace(kind, rows=rows)) for rows in _ROWS)
    far = (kind.rows - _ROWS[0]) / (_ROWS[1] - _ROWS[0])  # times grow as the rows do
    seconds = {name: least[name] + far * (most[name] - least[name]) for name in least}
    each = {dtype: (seconds["whole", dtype] - seconds["restored", dtype]) / _MANY for dtype in _types(kind)}
    best = min(each, key=lambda dtype: each[dtype])
    # What a call takes beside its inputs counts in neither.
    more = seconds["kernel, many", kind.dtype] - seconds["kernel, few", kind.dtype]
    saved = more / (_MANY - _FEW) - each[best]
    return (_power_of_two(seconds["restored", best] / saved) if saved > 0 else NEVER), best


def _types(kind: Kind) -> tuple[torch.dtype, ...]:
    """The types in which large batches may be multiplied: that of the inputs, float32 where that has more digits, and
    bfloat16 where few inputs are rounded to 8 bits, which is coarser."""
    if kind.dtype.itemsize < torch.float32.itemsize:
        return kind.dtype, torch.float32
    return (kind.dtype, torch.bfloat16) if kind.size == 1 and kind.dtype == torch.float32 else (kind.dtype,)


@cache
def _measured(kind: Kind) -> dict[tuple[str, torch.dtype], float]:
    """Seconds of the kernel for few inputs and for many, to restore the rows, and of a whole product of floats for many
    inputs."""
    from waterfill.runtime import operators  # which asks here for its products

    data = torch.zeros(kind.rows, operators.layout.row_bytes(kind.cols, kind.bits), dtype=torch.uint8, device="cpu")
    scales = torch.ones(kind.rows, 1, dtype=torch.float32, device="cpu")
    columns = torch.ones(kind.cols, dtype=torch.float32, device="cpu")
    matrix = operators.Matrix(data, scales, None, columns, [], kind.bits, kind.cols, kind.cols)
    x = torch.ones(_MANY, kind.cols, dtype=kind.dtype, device="cpu")
    actions: dict[tuple[str, torch.dtype], Callable[[], Tensor]] = {}
    for name, inputs in (("few", x[:_FEW]), ("many", x)):
        actions[f"kernel, {name}", kind.dtype] = partial(operators.by_integers, inputs, matrix, kind.size)
    for dtype in _types(kind):
        actions["restored", dtype] = partial(_restored, matrix.rows, kind.rows, dtype)
        actions["whole", dtype] = partial(product, x, (kind.rows, kind.cols), matrix.rows, dtype)
    return _in_turns(actions)


def _restored(rows: Rows, count: int, dtype: torch.dtype) -> Tensor:
    return rows(0, count).to(dtype)


def _power_of_two(inputs: float) -> int:
    """The least one that is not below, and not below the least batch."""
    return max(LEAST, 1 << (max(1, int(inputs)) - 1).bit_length())


def _in_turns(actions: Mapping[T, Callable[[], Tensor]]) -> dict[T, float]:
    """Seconds of the shortest run of each: what else the machine does makes runs longer, and none shorter."""
    fine = time.get_clock_info("thread_time").resolution < 1e-6
    clock, threads = time.thread_time if fine else time.perf_counter, torch.get_num_threads()
    best = dict.fromkeys(actions, float("inf"))
    torch.set_num_threads(1)
    try:
        began = clock()
        for done in range(_ROUNDS):
            if done >= _LEAST_ROUNDS and clock() - began > _SECONDS:
                break
            for name, action in actions.items():
                begin = clock()
                action()
                best[name] = min(best[name], clock() - begin)
    finally:
        torch.set_num_threads(threads)
    return best
