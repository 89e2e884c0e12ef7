"""Whether a matrix is faster packed or dense, for so many inputs at a time."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from waterfill.runtime.leaves import Term

_RUNS = 7
"""Runs of which the median counts."""


def timed(term: Term, weight: Tensor, batch: int) -> tuple[bool, str]:
    """Whether packed is faster than dense, and the two times. weight: the dense one, of which only its type and place
    count."""
    device = torch.device("cpu") if weight.is_meta else weight.device
    x = torch.ones(batch, term.cols, dtype=weight.dtype, device=device)
    dense = torch.ones(term.rows, term.cols, dtype=weight.dtype, device=device)
    with torch.inference_mode():
        own = _median(lambda: term(x))
        other = _median(lambda: nn.functional.linear(x, dense))
    return own < other, f"{1e6 * own:.0f} µs packed, {1e6 * other:.0f} µs dense"


def _median(action: Callable[[], object]) -> float:
    """Seconds of the median run."""
    action()
    times = []
    for _ in range(_RUNS):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return sorted(times)[_RUNS // 2]
