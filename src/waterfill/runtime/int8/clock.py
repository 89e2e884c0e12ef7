"""What is faster, in turns, so that what else the machine does meets all alike."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

_RUNS, _MOST_SECONDS = 9, 1.0
"""Runs of each, of which the median counts, fewer (three at least) where they take longer."""


@torch.inference_mode()
def seconds(actions: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The median of the runs of each."""
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    began = time.perf_counter()
    for done in range(_RUNS):
        if done >= 3 and time.perf_counter() - began > _MOST_SECONDS:
            break
        for name, action in actions.items():
            begin = time.perf_counter()
            action()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(seen) for name, seen in times.items()}
