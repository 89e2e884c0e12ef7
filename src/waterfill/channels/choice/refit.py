"""What is left makes up for what went: layer by layer, in the order of the run, the weights are fitted anew.

Each layer is to give what it gave in the original network, from the inputs that it gets now: least squares, with the
constant part in its bias, or in the batch norm that follows. What a step before got wrong, the next one corrects; the
last layer of a block's branch is to give what its input lacks too (arXiv 1707.06168, section 3.3).
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.channels.choice.moments import Moments, damped_factor, watch
from waterfill.channels.graph.network import IN, OUT, Layer, Network, Node
from waterfill.channels.graph.streams import Stream
from waterfill.network.channels.layers import LinearKind
from waterfill.network.channels.sizes import add_bias

_MOST_PASSES = 20
_WIDEST = 6144
_STORED = 1 << 29
"""Bytes of outputs of the original that are kept between passes."""


class Targets:
    """What the layers of the original give at sampled places, kept as far as memory allows.

    streams: by layer, what its outputs are added to; of such a layer the targets are what it gives and the stream.
    """

    def __init__(self, original: Network, streams: Mapping[str, Stream] = MappingProxyType({})) -> None:
        self.original, self.streams = original, streams
        self._stored: dict[int, dict[str, list[Tensor]]] = {}
        self._bytes = 0

    def of(self, names: Sequence[str], batch: Any, number: int) -> dict[str, list[Tensor]]:
        """By layer, for each of its calls, its outputs [rows, count] for a batch."""
        stored = self._stored.get(number, {})
        if all(name in stored for name in names):
            return {name: stored[name] for name in names}
        wanted = fitted_layers(self.original) if self._bytes < _STORED else names
        found = self._run([name for name in wanted if name not in stored], batch, number)
        if self._bytes < _STORED:
            self._bytes += sum(value.numel() * value.element_size() for each in found.values() for value in each)
            self._stored[number] = stored | found
        return {name: (found | stored)[name] for name in names}

    def beside(self, smaller: Network) -> dict[str, str]:
        """By layer, the module whose input is what it adds to, of those that a smaller network still has."""
        return {name: stream.module for name, stream in self.streams.items() if name in smaller.layers}

    def width(self, name: str) -> int:
        """Columns of a layer of the original."""
        return int(matrix_of(self.original.layers[name]).shape[1])

    def _run(self, names: Sequence[str], batch: Any, number: int) -> dict[str, list[Tensor]]:
        layers = [self.original.layers[name] for name in names]
        found: dict[str, list[Tensor]] = {name: [] for name in names}

        def see(name: str, _: int, columns: Tensor, stream: Tensor | None) -> None:
            layer = self.original.layers[name]
            outputs = matrix_of(layer).float() @ columns
            bias = bias_of(layer)
            outputs = outputs if bias is None else outputs + bias.float()[:, None]
            added = 0.0 if stream is None else self.streams[name].per_output(self.original, stream)
            found[name].append(outputs + added)

        watch(self.original, layers, batch, number, see, beside=self.beside(self.original))
        return found


def fitted_layers(network: Network) -> list[str]:
    """The layers that can be fitted anew, in order: those that multiply as PyTorch does, with weights of their own."""
    held: dict[int, int] = {}
    for layer in network.layers.values():
        for value in layer.module.parameters(recurse=False):
            held[id(value)] = held.get(id(value), 0) + 1
    return [
        name
        for name, layer in network.layers.items()
        if isinstance(layer.kind, LinearKind)
        and layer.kind.plain(layer.module)
        and not layer.kind.bound(layer.module)
        and matrix_of(layer).shape[1] <= _WIDEST
        and all(held[id(value)] == 1 for value in layer.module.parameters(recurse=False))
    ]


def refit(smaller: Network, targets: Targets, origin: Mapping[Node, Tensor], damping: float) -> None:
    """Fit every layer from the first that lost inputs, or follows a block that went, on, in place.

    origin: by node, the numbers in the original of the channels that are left, where some are not.
    damping: how much the weights hold on to what they are, relative to the mean variance of a column.
    """
    names = fitted_layers(targets.original)
    lost = (i for i, name in enumerate(names) if (name, IN) in origin or name not in smaller.layers)
    start = next(lost, len(names))
    for some in _passes([name for name in names[start:] if name in smaller.layers]):
        sums = {name: _Sums.of(smaller.layers[name]) for name in some}
        for number, batch in enumerate(smaller.inputs.batches):
            wanted = targets.of(some, batch, number)

            def see(  # noqa: PLR0913 - a function of a loop holds what changes in it
                name: str, call: int, columns: Tensor, stream: Tensor | None, wanted: Any = wanted, sums: Any = sums
            ) -> None:
                target = wanted[name][call][_rows(targets.original.layers[name], origin)]
                given = 0.0 if stream is None else targets.streams[name].per_output(smaller, stream)
                sums[name].add(columns, target - given)

            layers = [smaller.layers[name] for name in some]
            watch(smaller, layers, batch, number, see, targets.width, targets.beside(smaller))
        for name in some:
            sums[name].solve(smaller, targets.original, origin, damping)


def _passes(names: Sequence[str]) -> Iterator[list[str]]:
    """Layers that are fitted in one pass: one, or as many as keep the number of passes in bounds."""
    size = -(-len(names) // _MOST_PASSES)
    for start in range(0, len(names), max(1, size)):
        yield list(names[start : start + size])


class _Sums:
    """Moments of a layer's columns, of its targets, and of both."""

    def __init__(self, layer: Layer, rows: int, cols: int) -> None:
        self.layer = layer
        self.columns = Moments.of(cols, _WIDEST)
        self.targets = torch.zeros(rows, dtype=torch.float64, device="cpu")
        self.both = torch.zeros(rows, cols, dtype=torch.float64, device="cpu")

    @classmethod
    def of(cls, layer: Layer) -> "_Sums":
        return cls(layer, *matrix_of(layer).shape)

    def add(self, columns: Tensor, outputs: Tensor) -> None:
        near = self.columns.add(columns)
        self.targets += outputs.sum(1).cpu().double()
        self.both += (outputs @ near.T).cpu().double()

    @torch.no_grad()
    def solve(self, smaller: Network, original: Network, origin: Mapping[Node, Tensor], damping: float) -> None:
        """Write the fitted weights, and the constant where there is a place for it, or where inputs were lost."""
        kind, module, name = self.layer.kind, self.layer.module, self.layer.name
        assert isinstance(kind, LinearKind)
        weight = kind.matrix(module).cpu().double()
        count = max(1, self.columns.count)
        placed = bias_of(self.layer) is not None or name in original.norm_after or (name, IN) in origin
        constant = kind.bias_name(module) != "" and placed
        mean, target = self.columns.mean, self.targets / count
        second = self.columns.covariance
        cross = self.both / count - torch.outer(target, self.columns.drift)
        if not constant:
            second, cross = second + torch.outer(mean, mean), cross + torch.outer(target, mean)
        fitted = weight
        if float(second.diagonal().mean()) > 0:
            wrong = cross - weight @ second
            fitted = weight + torch.cholesky_solve(wrong.T, damped_factor(second, damping)).T
        kind.set_matrix(module, fitted.to(device=_device(module), dtype=_dtype(module)))
        if constant:
            _set_constant(self.layer, target - fitted @ mean, (smaller, original), origin.get((name, OUT)))


def _set_constant(layer: Layer, constant: Tensor, networks: tuple[Network, Network], kept: Tensor | None) -> None:
    """Put a constant part of a layer's outputs [rows] into its bias, else into the batch norm after it, else into a new
    bias."""
    (smaller, original), kind, module = networks, layer.kind, layer.module
    assert isinstance(kind, LinearKind)
    norm = original.norm_after.get(layer.name) if bias_of(layer) is None else None
    if norm is not None:
        mean: Any = original.model.get_submodule(norm).running_mean
        mean = mean if kept is None else mean[kept.to(mean.device)]
        moved: Any = smaller.model.get_submodule(norm).running_mean
        moved.copy_(mean - constant.to(mean))
        return
    if bias_of(layer) is None:
        add_bias(module, kind)
    bias = module._parameters[kind.bias_name(module)]
    assert bias is not None
    bias.copy_(constant.to(bias))


def _rows(layer: Layer, origin: Mapping[Node, Tensor]) -> "Tensor | slice":
    """The rows of a layer of the original that are left."""
    kept = origin.get((layer.name, OUT))
    assert isinstance(layer.kind, LinearKind)
    return slice(None) if kept is None else layer.kind.rows_of(layer.module, kept)


def matrix_of(layer: Layer) -> Tensor:
    """The weights of a layer as a matrix [rows, cols]."""
    assert isinstance(layer.kind, LinearKind)
    return layer.kind.matrix(layer.module)


def bias_of(layer: Layer) -> Tensor | None:
    """What a layer adds to the product of its matrix [rows]."""
    assert isinstance(layer.kind, LinearKind)
    return layer.module._parameters.get(layer.kind.bias_name(layer.module))


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters(recurse=False)).device


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters(recurse=False)).dtype
