"""Optimal codebooks that need no search.

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
