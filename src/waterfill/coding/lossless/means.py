"""Mean magnitudes of floating-point words, from which the factors of their scale are found."""

import math

import numpy as np

from waterfill.coding.lossless.word_format import WordFormat

_LEAST_MAGNITUDE = 2.0**-160


def log2(sizes: np.ndarray) -> np.ndarray:
    """By the C library, as in the core; NumPy's own differs in the last bit on some machines."""
    return np.array([math.log2(size) for size in np.maximum(sizes, _LEAST_MAGNITUDE).tolist()])


def sums(values: np.ndarray) -> np.ndarray:
    """Sums of each row [rows], as eight interleaved ones: an order that is the same everywhere, and fast."""
    rows, cols = values.shape
    padded = np.zeros((rows, -(-cols // 8) * 8))
    padded[:, :cols] = values
    eight = padded.reshape(rows, -1, 8).sum(1)
    four = eight[:, :4] + eight[:, 4:]
    two = four[:, :2] + four[:, 2:]
    return two[:, 0] + two[:, 1]


def mean_sizes(
    words: np.ndarray, layout: WordFormat, rows: np.ndarray | None, cols: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean magnitude by row and by column, relative to the given factors, on the biased exponent's scale."""
    by_row, by_col = np.zeros(len(words)), np.zeros(words.shape[1])
    step = max(1, (1 << 16) // max(1, words.shape[1]))
    largest = np.uint32(((1 << layout.exponent) - 1) << layout.mantissa)
    for start in range(0, len(words), step):
        magnitude = layout.magnitude(words[start : start + step])
        magnitude = np.where(magnitude < largest, magnitude, np.uint32(0)) << np.uint32(23 - layout.mantissa)
        size = magnitude.view(np.float32).astype(np.float64)
        if rows is not None:
            size /= np.maximum(rows[start : start + step, None], _LEAST_MAGNITUDE)
        if cols is not None:
            size /= np.maximum(cols, _LEAST_MAGNITUDE)
        by_row[start : start + step] = sums(size) / words.shape[1]
        by_col += size.sum(0)
    return by_row, by_col / len(words)
