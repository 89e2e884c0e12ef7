"""Products of inputs with matrices of small codes, and with sparse ones, defined to the bit; `native/kernels` does the
same, quickly.

Of small codes: each input vector times the column scales is rounded to integers of one to three bytes, by the largest
magnitude in it. Integers are multiplied and added up exactly. The sum of each group is multiplied by its scale in
float64, groups are added up from first to last, and the scale of the inputs comes last. So every machine finds the same
outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from waterfill.runtime import layout

LARGEST = {1: 127, 2: 127 * 256, 3: 127 * 256**2}
"""Integer of the largest magnitude, by bytes of an input."""
TINY = 1e-33
"""Inputs whose largest magnitude is not above are zeros: beyond, a factor would not be finite."""


@dataclass(frozen=True)
class Arrays:
    """A matrix of small codes as arrays.

    data: [rows, row bytes] (uint8), see `layout`. scales: [rows, groups] (float32). zeros: [rows, groups] (int16), of
    codes as they are stored, or None. columns: [cols] (float32) or None. corrections: None, or starts [rows + 1],
    columns and what is to be added to the codes there (int32). group: columns of a group.
    """

    data: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None
    columns: np.ndarray | None
    corrections: Sequence[np.ndarray] | None
    group: int
    cols: int
    bits: int


def codes_of(arrays: Arrays) -> np.ndarray:
    """The codes [rows, cols] (int64), corrected, less their zero points."""
    codes = layout.unpacked(arrays.data, arrays.cols, arrays.bits).astype(np.int64)
    if arrays.zeros is not None:
        stored = codes + (1 << arrays.bits - 1)
        codes = stored - arrays.zeros.astype(np.int64)[:, _groups(arrays)]
    if arrays.corrections is not None:
        starts, where, values = arrays.corrections
        np.add.at(codes, (np.repeat(np.arange(len(codes)), np.diff(starts)), where), values)
    return codes


def restored(arrays: Arrays) -> np.ndarray:
    """The matrix [rows, cols] (float32): (code * scale) * column, each product rounded."""
    scaled = codes_of(arrays).astype(np.float32) * arrays.scales[:, _groups(arrays)]
    return scaled if arrays.columns is None else scaled * arrays.columns


def product(x: np.ndarray, arrays: Arrays, size: int) -> np.ndarray:
    """x [batch, cols] (float32) times the matrix: [batch, rows]. size: bytes of an input, 1 to 3.

    An input vector that is not finite gives NaN.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = x if arrays.columns is None else x * arrays.columns
        largest = np.abs(scaled).max(1, initial=0.0)
        finite = np.isfinite(largest)
        usable = finite & (largest > np.float32(TINY))
        factor = np.divide(np.float32(LARGEST[size]), largest, out=np.zeros_like(largest), where=usable)
        given = np.rint(np.where(finite[:, None], scaled, 0) * factor[:, None]).astype(np.int64)
    codes, sums = codes_of(arrays), np.zeros((len(x), len(arrays.data)))
    for group in range(arrays.scales.shape[1]):
        some = slice(group * arrays.group, (group + 1) * arrays.group)
        totals = (given[:, some] @ codes[:, some].T).astype(np.float64)
        sums = sums + arrays.scales[:, group].astype(np.float64) * totals
    scale = np.where(finite, largest.astype(np.float64) / LARGEST[size], np.nan)
    with np.errstate(over="ignore"):
        return (sums * scale[:, None]).astype(np.float32)


def entries_product(x: np.ndarray, starts: np.ndarray, where: np.ndarray, values: np.ndarray) -> np.ndarray:
    """x [batch, cols] (float32) times a sparse matrix: [batch, rows].

    The entries `starts[r]` to `starts[r + 1]` of `where` (columns) and `values` (float32) are those of row r. Entry k
    of a row goes to chain k % 4; every product and every sum is rounded to float32, and the chains s become
    (s0 + s1) + (s2 + s3).
    """
    out = np.zeros((len(x), len(starts) - 1), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for row, (begin, end) in enumerate(pairwise(starts.tolist())):
            chains = np.zeros((4, len(x)), np.float32)
            for k in range(begin, end):
                chains[(k - begin) % 4] += values[k] * x[:, where[k]]
            out[:, row] = (chains[0] + chains[1]) + (chains[2] + chains[3])
    return out


def _groups(arrays: Arrays) -> np.ndarray:
    """The group of every column."""
    return np.arange(arrays.cols) // arrays.group
