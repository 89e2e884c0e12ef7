"""A network as channels see it: its layers, and a single run with hooks on them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from waterfill.network.batch_norm import fed_norms
from waterfill.network.channels.kind import IN, OUT, Kind
from waterfill.network.channels.sizes import layers_with_channels
from waterfill.network.running.batches import each_tensor, first_of, output_of, tensors_in
from waterfill.network.running.forward import Forward, as_deployed, result_of
from waterfill.network.running.inputs import Inputs
from waterfill.network.running.plainly import plainly
from waterfill.network.running.state import same_draws, unchanged

Node = tuple[str, str]
"""A layer by name, and one of its sides."""
Before = Callable[[str, Tensor], "Tensor | None"]
"""(name of a layer, its input) -> another input to go on with, or None."""
After = Callable[[str, Any], Any]
"""(name of a layer, its output) -> another output to go on with, or None."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer whose channels are known.

    number: of its first call in a run. calls: in one run. places: how often its products are made for one input.
    """

    name: str
    module: nn.Module
    kind: Kind
    number: int
    calls: int
    places: int

    def macs(self, sizes: tuple[int, int]) -> int:
        """Multiplications for one input of the network, were it of these sizes."""
        return self.places * self.kind.products(self.module, sizes)


@dataclass(frozen=True, eq=False)
class Network:
    """A network and its inputs.

    model: in evaluation mode. sample: one input, or the first batch where it cannot be cut.
    """

    model: nn.Module
    inputs: Inputs

    @cached_property
    def sample(self) -> Any:
        return first_of(self.inputs.first, 1)

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """The layers that run, by name, in the order of their first calls."""
        known = layers_with_channels(self.model)
        calls: dict[str, list[int]] = {}
        seen: dict[str, Tensor] = {}
        order: list[str] = []

        def before(name: str, x: Tensor) -> None:
            seen[name] = x
            order.append(name)

        def after(name: str, result: Any) -> None:
            module, kind = known[name]
            calls.setdefault(name, []).append(kind.places(module, seen[name], first_tensor(result)))

        with hooks(self.model, known, before, after):
            run(self.model, self.sample, self.inputs.forward)
        number = {name: order.index(name) for name in calls}
        made = [Layer(n, *known[n], number[n], len(each), sum(each)) for n, each in calls.items()]
        return {layer.name: layer for layer in sorted(made, key=lambda layer: layer.number)}

    @cached_property
    def norm_after(self) -> dict[str, str]:
        """By the name of a layer, the batch norm that takes its outputs as they are."""
        return {layer: norm for norm, layer in fed_norms(self.model, self.sample, self.inputs.forward).items()}


def size_of(layer: Layer, side: str) -> int:
    """Channels of one side of a layer."""
    return layer.kind.sizes(layer.module)[side == OUT]


def node_of(layer: Layer, side: str) -> Node:
    """The node of a side; that of a layer which passes channels through is the same for both."""
    return layer.name, OUT if layer.kind.through and side == IN else side


def first_tensor(value: Any) -> Tensor:
    """The first tensor in what a layer takes or gives: of packed sequences, their values."""
    packed = next((item for item in _flat(value) if isinstance(item, Tensor | PackedSequence)), None)
    if isinstance(packed, PackedSequence):
        return packed.data
    return packed if packed is not None else torch.empty(0, 1, dtype=torch.float32, device="cpu")


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list) and not isinstance(value, PackedSequence):
        for item in value:
            yield from _flat(item)
    else:
        yield value


@contextmanager
def hooks(
    model: nn.Module, layers: Mapping[str, Any], before: Before | None = None, after: After | None = None
) -> Iterator[None]:
    """A block in which functions see, and may replace, the inputs and outputs of layers, by their names."""
    modules = {name: model.get_submodule(name) for name in layers}
    with ExitStack() as stack:
        for name, module in modules.items():

            def entering(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> Any:
                given = first_tensor((args, kwargs))
                other = before(name, given) if before is not None else None
                if other is None:
                    return None
                swap = each_tensor((args, kwargs), lambda value: other if value is given else value)
                return tuple(swap[0]), swap[1]

            def leaving(_: nn.Module, args: Any, output: Any, name: str = name) -> Any:
                return after(name, output) if after is not None else None

            stack.callback(module.register_forward_pre_hook(entering, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leaving).remove)
        yield


@torch.no_grad()
def run(model: nn.Module, batch: Any, forward: Forward | None) -> Any:
    """What the model returns for a batch; neither it nor the batch is changed, and outputs may be NaN."""
    with as_deployed(model), unchanged(model), same_draws(batch), plainly():
        return result_of(model, each_tensor(batch, Tensor.clone), forward)


def main_output(result: Any) -> Tensor:
    """The tensor of outputs in what a model returned."""
    return output_of(result)


def all_outputs(result: Any) -> list[Tensor]:
    """The real tensors in what a model returned; only its logits where it has such."""
    logits = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    return [value for value in tensors_in(logits if isinstance(logits, Tensor) else result) if _is_real(value)]


def _is_real(value: Tensor) -> bool:
    return value.is_floating_point() and value.ndim > 0
