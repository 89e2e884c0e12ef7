"""The time that a job takes, estimated by fitting a few of its weights."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from waterfill.compression.allocation.weight import Weight

_PROBED = 1 << 19  # entries of a weight that is timed; of larger ones some rows
_PROBES = 3  # weights of a kind, of different sizes
_AGAIN = 1.0, 1.7  # fits of each weight, at best and at worst, until a size is met
_WARM = 0.6  # share of the measuring time, at best, once tables and files are in memory
_SHARED = 0.5  # threads gained by each further one, at worst


def seconds_of(weights: Sequence[Weight], price: float, workers: int, measuring: float) -> tuple[float, float]:
    """Seconds that fitting weights at a price takes at best and at worst, with `measuring`, which is known, before it.

    A few weights of each kind (matrices, kernels, vectors), small, middling and large, are fitted here; others take as
    long for an entry as the one of their kind that is nearest in size.
    """
    kinds: dict[str, list[Weight]] = {}
    for weight in weights:
        kinds.setdefault(weight.layout.role if not weight.reason else "as it is", []).append(weight)
    total = sum(_seconds(kind, price) for kind in kinds.values())
    threads = min(workers, os.cpu_count() or 1, len(weights))
    best, worst = _AGAIN[0] * total / threads, _AGAIN[1] * total / (1 + _SHARED * (threads - 1))
    return _WARM * measuring + best, measuring + worst


def _seconds(weights: list[Weight], price: float) -> float:
    """Seconds for all weights of a kind, one after the other."""
    ranked = sorted(weights, key=lambda weight: weight.layout.entries)
    count = min(_PROBES, len(ranked))
    places = {round(i * (len(ranked) - 1) / max(1, count - 1)) for i in range(count)}
    paces: list[tuple[int, float]] = []  # entries, and seconds for each
    _some_rows(ranked[0]).fit(price)  # the first of a kind makes tables that the others find
    for place in sorted(places):
        probe = _some_rows(ranked[place])
        began = time.perf_counter()
        probe.fit(price)
        entries = max(1, probe.layout.entries)
        paces.append((entries, (time.perf_counter() - began) / entries))
    sizes = [max(1, weight.layout.entries) for weight in ranked]
    return sum(size * min(paces, key=lambda pace: abs(pace[0] - size))[1] for size in sizes)


def _some_rows(weight: Weight) -> Weight:
    """A weight, or its first rows where it is large."""
    layout = weight.layout
    rows = max(1, layout.shape[0] * _PROBED // layout.entries) if layout.entries > _PROBED else 0
    if not rows or rows >= layout.shape[0]:
        return weight
    smaller = replace(layout, shape=(rows, *layout.shape[1:]))
    return replace(weight, layout=smaller, load=lambda: weight.load()[:rows], importance=None)
