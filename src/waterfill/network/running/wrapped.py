"""Networks inside torch's own wrappers, whose names of tensors have a prefix that the network's class does not know."""

from typing import Any

from torch import nn

_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
"""What `torch.compile` and torch's parallel modules return, by class, and where they keep the network."""


def unwrapped(model: Any) -> Any:
    """The network that `torch.compile`, `DataParallel` and `DistributedDataParallel` were given; others as they are.

    Parameters are shared: what is done to the one is done to the other.
    """
    while isinstance(model, nn.Module) and type(model).__module__.startswith("torch."):
        inner = getattr(model, _WRAPPERS.get(type(model).__name__, ""), None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model
