"""What is faster, in turns, so that what else the machine does meets all alike."""

import time
from collections.abc import Callable, Mapping

import torch

_RUNS, _MOST_SECONDS = 15, 1.0
"""Runs of each, fewer (three at least) where they take longer."""


@torch.inference_mode()
def seconds(actions: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The shortest of the runs of each: what else the machine does can only add to it."""
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
    return {name: min(seen) for name, seen in times.items()}
