"""The channels of recurrent layers: hidden units, the same in every layer and direction."""

from typing import Any

import torch
from torch import Tensor, nn

from waterfill.network.channels.kind import IN, OUT, Axes, Axis
from waterfill.network.channels.layers import LinearKind
from waterfill.network.tracing.im2col import vectors

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


class Recurrent(LinearKind):
    """nn.LSTM, GRU and RNN: unit j of the first direction, that of the second and those of all layers go together.

    Its matrix is that of the inputs of the first layer, all directions below one another.
    """

    state = True

    def settle(self, layer: Any) -> None:
        layer._init_flat_weights()

    def fits(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.LSTM | nn.GRU | nn.RNN) and getattr(layer, "proj_size", 0) == 0

    def sizes(self, layer: Any) -> tuple[int, int]:
        return layer.input_size, layer.hidden_size

    def axes(self, layer: Any) -> dict[str, Axes]:
        gates = Axis(OUT, GATES[layer.mode])
        found: dict[str, Axes] = {}
        for name in layer._flat_weights_names:
            reads = Axis(OUT, reads=True)
            if name.startswith("weight_ih"):
                first = name.removesuffix("_reverse").endswith("_l0")
                reads = Axis(IN, reads=True) if first else Axis(OUT, 2 if layer.bidirectional else 1, reads=True)
            found[name] = (gates, reads) if name.startswith("weight") else (gates,)
        return found

    def attributes(self, layer: nn.Module, sizes: tuple[int, int]) -> dict[str, Any]:
        return {"input_size": sizes[0], "hidden_size": sizes[1]}

    def products(self, layer: Any, sizes: tuple[int, int]) -> int:
        directions = 2 if layer.bidirectional else 1
        rows = GATES[layer.mode] * sizes[1] * directions
        deeper = (layer.num_layers - 1) * directions * sizes[1]
        return rows * (sizes[0] + layer.num_layers * sizes[1] + deeper)

    def places(self, layer: Any, x: Tensor, y: Tensor) -> int:
        return x.numel() // max(1, x.shape[-1])

    def names(self, layer: Any) -> list[str]:
        """The weights of the inputs of the first layer, for each direction."""
        return ["weight_ih_l0", *(["weight_ih_l0_reverse"] if layer.bidirectional else [])]

    def matrix(self, layer: Any) -> Tensor:
        return torch.cat([getattr(layer, name).detach() for name in self.names(layer)])

    def set_matrix(self, layer: Any, matrix: Tensor) -> None:
        names = self.names(layer)
        for name, part in zip(names, matrix.chunk(len(names)), strict=True):
            getattr(layer, name).data.copy_(part)

    def columns(self, layer: Any, x: Tensor, generator: torch.Generator, chosen_for: int) -> Tensor:
        return vectors(x, generator, chosen_for)[0]

    def bias_name(self, layer: Any) -> str:
        return "bias_ih_l0" if layer.bias and not layer.bidirectional else ""

    def inner(self, layer: Any) -> list[str]:
        """The weights that read hidden units."""
        first = self.names(layer)
        return [name for name in layer._flat_weights_names if name.startswith("weight") and name not in first]
