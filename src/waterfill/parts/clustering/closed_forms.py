"""Optimal books, and optimal sums of a book and a few free entries, that need no search.

All take plain vectors (float64 inside) and minimize the squared error exactly.
"""

import numpy as np


def binary(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The book {-a, a} of least weighted squared error: a is the mean magnitude (arXiv 1603.05279)."""
    a = float((w * np.abs(x)).sum(dtype=np.float64) / max(float(w.sum(dtype=np.float64)), 1e-300))
    return np.unique([-a, a])


def ternary(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The book {-a, 0, a} of least weighted squared error.

    For the best a the nonzero entries are those with |x| > a / 2, a prefix of the sorted magnitudes, so one scan over
    all prefixes for the largest (sum w|x|)^2 / sum w is exact (Carreira-Perpinan, Idelbayev, arXiv 1707.04319).
    """
    magnitude = np.abs(x).astype(np.float64)
    order = np.argsort(-magnitude, kind="stable")
    weight = np.cumsum(w[order], dtype=np.float64)
    moment = np.cumsum(w[order] * magnitude[order], dtype=np.float64)
    mean = moment / np.maximum(weight, 1e-300)
    a = float(mean[np.argmax(mean * moment)])
    return np.unique([-a, 0.0, a])


def powers_of_two(top: int, levels: int) -> np.ndarray:
    """`levels` signed powers of two, the largest 2^top; zero is among them when `levels` is odd."""
    magnitudes = 2.0 ** np.arange(top - levels // 2 + 1, top + 1)
    return np.unique(np.concatenate([-magnitudes, np.zeros(levels % 2), magnitudes]))


def nearest(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The index [n] of the level (ascending) nearest to each value."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, x)


def fixed_book_plus_sparse(x: np.ndarray, levels: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes [n] and corrections [n], at most `kept` nonzero, of least squared error for a given book.

    Nearest level everywhere, then the largest residuals are corrected in full: the error is a sum over entries, and a
    corrected entry costs nothing whatever its code (arXiv 2107.04380, section on sums with a fixed codebook).
    """
    codes = nearest(x, levels)
    residual = x - levels[codes]
    corrected = np.argsort(-np.abs(residual), kind="stable")[:kept]
    corrections = np.zeros_like(residual)
    corrections[corrected] = residual[corrected]
    return codes, corrections


def binary_plus_sparse(x: np.ndarray, kept: int) -> tuple[float, np.ndarray]:
    """The a of the book {-a, a} and the corrections [n], at most `kept` nonzero, of least squared error.

    For any a the entries to correct are those whose magnitude is farthest from a, so the others are a window of the
    sorted magnitudes; the best window is that of least variance, found by prefix sums in O(n log n).
    """
    magnitude = np.abs(x).astype(np.float64)
    order = np.argsort(magnitude, kind="stable")
    size = max(len(x) - kept, 0)
    if size == 0:
        return 0.0, x.astype(np.float64)
    first = np.append(0.0, np.cumsum(magnitude[order]))
    second = np.append(0.0, np.cumsum(magnitude[order] ** 2))
    sums = first[size:] - first[: len(first) - size]
    spread = second[size:] - second[: len(second) - size] - sums**2 / size
    begin = int(spread.argmin())
    a = float(sums[begin] / size)
    corrections = x - np.where(x < 0, -a, a)
    corrections[order[begin : begin + size]] = 0.0
    return a, corrections
