"""The multiplications of a network: how much it computes, which says little of how long that takes."""

from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from waterfill.network.channels.sizes import layers_with_channels
from waterfill.network.running.batches import each_tensor, tensors_in
from waterfill.network.running.forward import Forward, as_deployed, result_of
from waterfill.network.running.state import same_draws, unchanged


@runtime_checkable
class Counts(Protocol):
    """A layer that counts its own multiplications."""

    def multiplications(self, x: Tensor, y: Tensor) -> int:
        """How many it makes of its inputs for its outputs."""


@torch.no_grad()
def multiplications(model: nn.Module, batch: Any, forward: Forward | None = None) -> int:
    """Multiplications with the weights of linear layers, convolutions and recurrent layers in a run of a batch.

    As `prune_channels` counts them. Layers that hold parts count those of their parts: entries that are kept, both thin
    factors. What has no such layer, as products of attention, counts nothing. The model is not changed.
    """
    known, found = layers_with_channels(model), list[int]()

    def count(name: str, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        x, y = _first((args, kwargs)), _first(output)
        if name in known:
            kind = known[name][1]
            found.append(kind.places(layer, x, y) * kind.products(layer, kind.sizes(layer)))
        elif isinstance(layer, Counts):
            found.append(layer.multiplications(x, y))

    hooks = [
        module.register_forward_hook(partial(count, name), with_kwargs=True)
        for name, module in model.named_modules()
        if name in known or isinstance(module, Counts)
    ]
    try:
        with as_deployed(model), unchanged(model), same_draws(batch):
            result_of(model, each_tensor(batch, Tensor.clone), forward)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(found)


def _first(value: Any) -> Tensor:
    """The first tensor in what a layer takes or gives: of packed sequences, their values."""
    return next(tensors_in(value), torch.empty(0, 1, dtype=torch.float32, device="cpu"))
