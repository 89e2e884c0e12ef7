"""From how many inputs on blocks of restored rows are faster than integer kernels: measured once in a process.

Instruction sets and libraries differ too much for a number that is good everywhere. A few milliseconds, spent at the
first batch that could be large, say what a kernel takes for an input, what a product of floats takes, and what it costs
to restore the rows; the three make the number of inputs from which restoring pays. It is a power of two, so that it is
nearly always the same on the same machine. What is timed is one thread at work, from which other programs take little
away, and threads help all three alike.
"""

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from waterfill.runtime.blocked.product import Rows, product

LEAST = 8
"""Batches below are never large."""
NEVER = 1 << 62
_RUNS, _LEAST_RUNS, _SECONDS = 9, 3, 2e-3  # of an action: so many, fewer where they take longer
_ROWS, _COLS = 256, 1024  # of the matrix that is timed; cheap, and large enough for the loops to count
_FEW, _MANY = 16, 64  # inputs by which the kernel and the product of floats are timed


@cache
def crossover(bits: int, size: int, dtype: torch.dtype) -> tuple[int, torch.dtype]:
    """How many inputs a large batch has at least, and the type in which it is multiplied: that of the inputs, or
    float32 where that has more digits and the machine does it faster.

    bits: of a code. size: bytes of an input as an integer. dtype: of the inputs.
    """
    from waterfill.runtime import operators  # which asks here for its products

    data = torch.zeros(_ROWS, operators.layout.row_bytes(_COLS, bits), dtype=torch.uint8, device="cpu")
    scales = torch.ones(_ROWS, 1, dtype=torch.float32, device="cpu")
    columns = torch.ones(_COLS, dtype=torch.float32, device="cpu")
    matrix = operators.Matrix(data, scales, None, columns, [], bits, _COLS, _COLS)
    x = torch.ones(_MANY, _COLS, dtype=dtype, device="cpu")
    few = x[:_FEW]
    kinds = (dtype, torch.float32) if dtype.itemsize < torch.float32.itemsize else (dtype,)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        kernel = _shortest(lambda: operators.by_integers(few, matrix, size)) / _FEW
        times = {own: _of_floats(x, matrix.rows, own) for own in kinds}
    finally:
        torch.set_num_threads(threads)
    best = min(times, key=lambda own: times[own][1])
    restoring, each = times[best]
    return (_power_of_two(restoring / (kernel - each)) if kernel > each else NEVER), best


def _of_floats(x: Tensor, restored: Rows, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds that it takes to restore the rows, and then to multiply by them for an input more."""
    restoring = _shortest(lambda: restored(0, _ROWS).to(dtype))
    whole = _shortest(lambda: product(x, (_ROWS, _COLS), restored, dtype))
    return restoring, (whole - restoring) / len(x)


def _power_of_two(inputs: float) -> int:
    """The least one that is not below, and not below the least batch."""
    return max(LEAST, 1 << (max(1, int(inputs)) - 1).bit_length())


def _shortest(action: Callable[[], Tensor]) -> float:
    """Seconds of the shortest run: what else the machine does makes runs longer, and none shorter."""
    fine = time.get_clock_info("thread_time").resolution < 1e-6
    clock = time.thread_time if fine else time.perf_counter
    began, times = clock(), [float("inf")]
    while len(times) <= _LEAST_RUNS or (len(times) <= _RUNS and clock() - began < _SECONDS):
        begin = clock()
        action()
        times.append(clock() - begin)
    return min(times)
