"""How much memory a call takes at its peak, as PyTorch's allocators count it."""

from collections.abc import Callable
from typing import Any

import torch


def most_allocated(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that tensors made in a call take at once, at most; None where PyTorch does not tell.

    What a library takes beside PyTorch does not count. Raises what the call raises.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return max(0, torch.cuda.max_memory_allocated(device) - before)
    return _on_cpu(call) if device.type == "cpu" else None


def _on_cpu(call: Callable[[], object]) -> int | None:
    """The same, from the allocations that the profiler of autograd sees; the newer one writes to standard error."""
    try:
        from torch._C._profiler import _ExperimentalConfig
        from torch.autograd import ProfilerConfig, ProfilerState, _disable_profiler_legacy, _enable_profiler_legacy

        config = ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig())
        _enable_profiler_legacy(config)
    except (ImportError, RuntimeError, TypeError):  # another PyTorch, or a profiler that runs already
        return None
    try:
        call()
    finally:
        threads: list[list[Any]] = _disable_profiler_legacy()
    held = most = 0
    for event in (event for thread in threads for event in thread if event.kind() == "memory_alloc"):
        held += event.cpu_memory_usage()
        most = max(most, held)
    return most
