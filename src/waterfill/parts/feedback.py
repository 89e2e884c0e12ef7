"""Successive quantization with feedback (DESIGN 6.3): each column takes over the errors of the columns before it.

With A = T^T T, T lower triangular, D(E) = 1/2 sum_o g_o sum_i T_ii^2 (E_oi + sum_{j<i} T_ij / T_ii E_oj)^2; so column
i is quantized with the target w_i + sum_{j<i} T_ij / T_ii (w_j - w^_j) and the weight T_ii^2. Going from the first
column to the last, as the decoder does, makes the mean that it will predict known to the choice of each code.
"""

from collections.abc import Callable

import numpy as np

BLOCK = 64

Choose = Callable[[int, np.ndarray], np.ndarray]
"""(visit i, its targets [rows, channels] in steps) -> the codes, float32, same shape."""


def feed_back(x: np.ndarray, lower: np.ndarray, choose: Choose) -> None:
    """Visit the columns i, i + n, i + 2n, ... of x [rows, cols] for i = 0 .. n-1, with lower = T [n, n].

    The targets given to `choose` carry the errors of all earlier visits; a block's errors reach later blocks at once.
    """
    n = len(lower)
    ratio = (lower / np.diag(lower)[:, None]).astype(np.float32)
    cube = x.reshape(len(x), -1, n)
    carried = np.zeros(cube.shape, dtype=np.float32)
    for start in range(0, n, BLOCK):
        end = min(start + BLOCK, n)
        errors = np.zeros((end - start, *cube.shape[:2]), dtype=np.float32)
        for i in range(start, end):
            own = np.tensordot(ratio[i, start:i], errors[: i - start], axes=1) if i > start else 0
            targets = cube[:, :, i] + carried[:, :, i] + own
            errors[i - start] = cube[:, :, i] - choose(i, targets)
        if end < n:
            carried[:, :, end:] += np.tensordot(errors, ratio[end:, start:end], axes=(0, 1))
