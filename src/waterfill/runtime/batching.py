"""Operators under `torch.vmap`: the dimension that it adds is one more in front of the inputs."""

from typing import Any

import torch
from torch import Tensor

from waterfill.errors import BadInput


def over_batches(library: torch.library.Library, name: str) -> None:
    """Teach vmap an operator whose first tensor is inputs [..., n], or indices [n], and the others one matrix."""
    register = getattr(torch.library, "register_vmap", None)  # which PyTorch has from 2.5 on
    if register is None:
        return
    run = getattr(torch.ops.waterfill, name)

    def batched(_: Any, dims: tuple[Any, ...], x: Tensor, *given: Any) -> tuple[Tensor, int]:
        others = [dim for each in dims[1:] for dim in (each if isinstance(each, list | tuple) else [each])]
        if any(dim is not None for dim in others):
            raise BadInput(
                "vmap over packed weights is not possible: a packed layer is one matrix; map over its inputs"
            )
        moved = x.movedim(dims[0], 0)
        if x.is_floating_point():
            return run(moved, *given), 0
        made = run(moved.reshape(-1), *given)
        return made.reshape(*moved.shape, made.shape[1]), 0

    register(f"waterfill::{name}", batched, lib=library)
