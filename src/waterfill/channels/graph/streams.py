"""What the last layer of a branch adds to: the input of its block, so that it can correct what that got wrong."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from waterfill.channels.graph.blocks import Block
from waterfill.channels.graph.network import Layer, Network, hooks, run
from waterfill.network.batch_norm import nearly_equal
from waterfill.network.channels.layers import LinearKind
from waterfill.network.running.batches import each_tensor

_LEAST = 1e-3
"""Of the mean scale of a norm: channels that it makes smaller correct nothing."""


@dataclass(frozen=True)
class Stream:
    """Where a layer's outputs go: they are added to the input of a block, through a batch norm or as they are.

    module: the block by name. norm: by name, or "".
    """

    module: str
    norm: str

    def per_output(self, network: Network, stream: Tensor) -> Tensor:
        """What a layer would have to give more for this to be added to the stream [channels, count]."""
        if not self.norm:
            return stream
        norm: Any = network.model.get_submodule(self.norm)
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.detach().double()
        small = scale.abs() < _LEAST * scale.abs().mean()
        factor = torch.where(small, torch.zeros_like(scale), 1 / torch.where(small, torch.ones_like(scale), scale))
        return stream * factor.to(stream)[:, None]


def streams_of(network: Network, blocks: Iterable[Block]) -> dict[str, Stream]:
    """By the name of a layer that alone closes a block, what its outputs are added to."""
    found = {}
    for block in blocks:
        if len(block.closing) == 1 and _place_by_place(network.layers[block.closing[0]]):
            stream = Stream(block.name, network.norm_after.get(block.closing[0], ""))
            if _is_added(network, block, stream.norm or block.closing[0]):
                found[block.closing[0]] = stream
    return found


def _place_by_place(layer: Layer) -> bool:
    """Whether each column that a layer multiplies with makes the outputs of one place."""
    return isinstance(layer.kind, LinearKind) and not layer.kind.state and layer.kind.bias_name(layer.module) != ""


def _is_added(network: Network, block: Block, last: str) -> bool:
    """Whether a block gives its input and one more where its last layer gives ones, and all others zeros."""
    given: list[Tensor] = []
    added: list[bool] = []

    def before(at: str, x: Tensor) -> None:
        if at == block.name:
            given.append(x.clone())

    def after(at: str, result: Any) -> Any:
        if at == block.name:
            added.append(nearly_equal(result, given[0] + 1))
            return None
        return each_tensor(result, torch.ones_like if at == last else torch.zeros_like)

    with hooks(network.model, dict.fromkeys([block.name, *block.layers]), before, after):
        run(network.model, network.sample, network.inputs.forward)
    return added == [True]
