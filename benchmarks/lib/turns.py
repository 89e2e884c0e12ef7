"""Times of several ways to do the same, in turns, so that what else the machine does meets all alike."""

import time
from collections.abc import Callable, Mapping

import torch

_LEAST_ROUNDS = 3


def clock() -> float:
    """Seconds: of the processor where one thread works, else of the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def in_turns(actions: Mapping[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, float]:
    """Seconds of the shortest run of each in so many rounds, or in at least three and so many seconds."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    until = time.perf_counter() + seconds
    for done in range(rounds):
        if done >= _LEAST_ROUNDS and time.perf_counter() > until:
            break
        for name, action in actions.items():
            began = clock()
            action()
            times[name].append(clock() - began)
    return {name: min(seen) for name, seen in times.items()}
