"""Networks inside torch's own wrappers, whose names of tensors have a prefix that the network's class does not know."""

from collections.abc import Iterable
from typing import Any

from torch import nn

_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
"""What `torch.compile` and torch's parallel modules return, by class, and where they keep the network."""


def unwrapped(model: Any) -> Any:
    """The network that `torch.compile`, `DataParallel` and `DistributedDataParallel` were given; others as they are.

    Parameters are shared: what is done to the one is done to the other.
    """
    while (inner := _held(model)) is not None:
        model = inner
    return model


def _held(model: Any) -> nn.Module | None:
    """What a wrapper holds; None for what is no wrapper."""
    if not (isinstance(model, nn.Module) and type(model).__module__.startswith("torch.")):
        return None
    inner = getattr(model, _WRAPPERS.get(type(model).__name__, ""), None)
    return inner if isinstance(inner, nn.Module) else None


def holder(model: Any, names: Iterable[str]) -> Any:
    """The network that has tensors of these names: as it is where they have its prefix, else what it holds."""
    first = next(iter(names), "")
    while (inner := _held(model)) is not None and not first.startswith(f"{_WRAPPERS[type(model).__name__]}."):
        model = inner
    return model
