"""Exact one-dimensional weighted k-means, and its entropy-constrained refinement, on a histogram.

The k best levels of sorted values split them into k intervals, and the cost of an interval satisfies the quadrangle
inequality, so dynamic programming by divide and conquer finds them in O(k n log n). Sources: Wu, "Optimal quantization
by matrix searching", 1991; Gronlund et al., arXiv 1701.07204; entropy constraint: Chou, Lookabaugh, Gray, 1989.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MOST_BINS = 4096
_ENTRIES_SAMPLED = 1 << 16
_ROUNDS = 8


@dataclass(frozen=True)
class Bins:
    """Weighted sums over runs of neighboring values, ascending, none empty; all [bins] (float64).

    count: values; weight: sum of w; first: sum of w x; second: sum of w x^2.
    """

    count: np.ndarray
    weight: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @property
    def total(self) -> float:
        """The number of values."""
        return float(self.count.sum())


def collect(x: np.ndarray, w: np.ndarray) -> Bins:
    """Bins of the values x [n] with weights w [n]: one per distinct value if there are at most `MOST_BINS`.

    Otherwise bounds are half evenly spaced, for the tails, and half quantiles, for the bulk; k-means is then exact
    among partitions that respect the bins.
    """
    edges = _edges(x)
    index = np.searchsorted(edges, x, side="right") - 1
    x = x.astype(np.float64)
    # A value of zero weight still needs a level; a tiny weight keeps every mean defined.
    w = w + max(1e-9 * float(w.mean()), 1e-30)
    sums = [np.bincount(index, weights=v, minlength=len(edges)) for v in (np.ones_like(x), w, w * x, w * x * x)]
    used = sums[0] > 0
    return Bins(*(v[used] for v in sums))


def _edges(x: np.ndarray) -> np.ndarray:
    sample = np.unique(x[:: -(-len(x) // _ENTRIES_SAMPLED)])
    if len(sample) <= MOST_BINS:
        distinct = np.unique(x)
        if len(distinct) <= MOST_BINS:
            return distinct
    even = np.linspace(float(x.min()), float(x.max()), MOST_BINS // 2).astype(x.dtype)
    quantiles = np.quantile(sample, np.linspace(0, 1, MOST_BINS // 2)).astype(x.dtype)
    return np.unique(np.concatenate([x.min()[None], even, quantiles]))


def optimal_levels(bins: Bins, most: int) -> Iterator[np.ndarray]:
    """The optimal books [k] (float64, ascending) for k = 1, 2, ... up to `most` or the number of bins."""
    origin = bins.first.sum() / bins.weight.sum()  # sums about the mean lose fewer digits
    weight = np.append(0.0, np.cumsum(bins.weight))
    first = np.append(0.0, np.cumsum(bins.first - origin * bins.weight))
    gain = np.append(0.0, first[1:] ** 2 / weight[1:])
    splits: list[np.ndarray] = []
    for k in range(1, min(most, len(bins.count)) + 1):
        if k > 1:
            gain, split = _layer(gain, weight, first, k)
            splits.append(split)
        bounds = [len(bins.count)]
        for split in reversed(splits):
            bounds.append(int(split[bounds[-1]]))
        ends = np.array(bounds[::-1])
        yield origin + np.diff(first[ends], prepend=0.0) / np.diff(weight[ends], prepend=0.0)


def _layer(gain: np.ndarray, weight: np.ndarray, first: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Best gains [bins + 1] of k intervals ending at each bound, and where the last interval begins.

    gain(j) = max over i < j of gain(i) + (first_j - first_i)^2 / (weight_j - weight_i). The best i grows with j, so the
    bounds are visited in halving strides, each between the answers of its neighbors, one stride at a time.
    """
    last = len(gain) - 1
    best, begin = np.full(last + 1, -np.inf), np.full(last + 1, last)
    begin[: k - 1] = k - 1
    stride = 1 << last.bit_length()
    while stride:
        j = np.arange(stride, last + 1, 2 * stride)
        j = j[j >= k]
        if len(j):
            low = np.maximum(begin[j - stride], k - 1)
            high = np.minimum(begin[np.minimum(j + stride, last)], j - 1)
            high = np.where(j + stride > last, j - 1, high)
            best[j], begin[j] = _row_maxima(gain, weight, first, (j, np.minimum(low, j - 1), high))
        stride //= 2
        begin[:k] = k - 1
    return best, begin


def _row_maxima(
    gain: np.ndarray, weight: np.ndarray, first: np.ndarray, rows: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """For every j of rows = (j, low, high): the largest gain over low <= i <= high, and the first i that reaches it."""
    j, low, high = rows
    lengths = high - low + 1
    starts = np.cumsum(lengths) - lengths
    i = np.arange(int(lengths.sum())) + np.repeat(low - starts, lengths)
    each = np.repeat(j, lengths)
    values = gain[i] + (first[each] - first[i]) ** 2 / (weight[each] - weight[i])
    best = np.maximum.reduceat(values, starts)
    reached = np.where(values == np.repeat(best, lengths), i, len(gain))
    return best, np.minimum.reduceat(reached, starts)


@dataclass(frozen=True)
class Book:
    """Levels [k] (float64, ascending), the bits [k] of each, and distortion + price * bits on the histogram, nats."""

    levels: np.ndarray
    bits: np.ndarray
    cost: float


def refine(bins: Bins, levels: np.ndarray, price: float, fixed: bool = False) -> Book:
    """Entropy-constrained Lloyd rounds from `levels`; the levels stay where they are when `fixed`.

    Each bin takes the level of least 1/2 w (x - level)^2 + price * bits; bits are -log2 of the level's share.
    """
    share = np.full(len(levels), 1.0 / len(levels))
    mean, halved, rate = bins.first / bins.weight, 0.5 * bins.weight[:, None], price * bins.count[:, None]
    distances = halved * (mean[:, None] - levels) ** 2
    for _ in range(_ROUNDS):
        code = (distances + rate * -np.log2(share)).argmin(1)
        count, weight, first = (
            np.bincount(code, weights=v, minlength=len(levels)) for v in (bins.count, bins.weight, bins.first)
        )
        used = count > 0
        before = levels, share
        levels = levels[used] if fixed else first[used] / weight[used]
        share = count[used] / bins.total
        if all(map(np.array_equal, before, (levels, share))):
            break  # every further round would give the same again
        distances = distances[:, used] if fixed else halved * (mean[:, None] - levels) ** 2
    bits = -np.log2(share)
    code = (np.cumsum(used) - 1)[code]
    errors = bins.second - 2 * levels[code] * bins.first + levels[code] ** 2 * bins.weight
    return Book(levels, bits, 0.5 * float(errors.sum()) + price * float((bins.count * bits[code]).sum()))
