"""Times of several ways to do the same, side by side."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

T = TypeVar("T", bound=Hashable)
_ROUNDS, _LEAST_ROUNDS, _SECONDS = 25, 5, 60e-3  # of all that is timed: so many, fewer where they take longer
WHOLE_NETWORK = 1.0
"""Seconds that suit what runs long."""


def shortest(
    actions: Mapping[T, Callable[[], object]], device: torch.device, seconds: float = _SECONDS
) -> dict[T, float]:
    """Seconds of the shortest run of each, turn by turn: what else the machine does makes runs longer, none shorter.

    seconds: after which no more rounds begin than it takes at least.
    """
    best = dict.fromkeys(actions, float("inf"))
    for action in actions.values():  # which warms up
        action()
    began = time.perf_counter()
    for done in range(_ROUNDS):
        if done >= _LEAST_ROUNDS and time.perf_counter() - began > seconds:
            break
        for name, action in actions.items():
            _settle(device)
            begin = time.perf_counter()
            action()
            _settle(device)
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


def _settle(device: torch.device) -> None:
    """Wait for what a device is still computing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
