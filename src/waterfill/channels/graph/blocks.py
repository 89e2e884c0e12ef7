"""Blocks that can be left out whole: what they add to their input is all that they do.

Found by a run in which every product inside of a module is zero: a module that then gives its input back adds a branch
to it, whatever code it is made of. Without the branch `nn.Identity` does the same with no calls at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from waterfill.channels.graph.groups import Family
from waterfill.channels.graph.network import OUT, Layer, Network, all_outputs, hooks, run
from waterfill.network.batch_norm import nearly_equal
from waterfill.network.channels.gone import take_out
from waterfill.network.channels.layers import LinearKind
from waterfill.network.channels.sizes import put_in_place
from waterfill.network.running.batches import each_tensor


@dataclass(frozen=True, eq=False)
class Block:
    """A module that gives its input back when its branch is zero.

    layers: inside of it. closing: those whose outputs leave it.
    """

    name: str
    layers: tuple[str, ...]
    closing: tuple[str, ...]

    def holds(self, family: Family) -> bool:
        """Whether channels are of this block alone."""
        return set(family.layers) <= set(self.layers)


def blocks_of(network: Network, families: list[Family]) -> list[Block]:
    """The smallest modules that can be left out, in the order of the model."""
    inside = {
        name: [layer for layer in network.layers if layer.startswith(f"{name}.")]
        for name, _ in network.model.named_modules()
        if name
    }
    candidates = {name: layers for name, layers in inside.items() if layers}
    found: list[str] = []
    for name in sorted(_shape_keeping(network, candidates), key=lambda name: -name.count(".")):
        if not any(other.startswith(f"{name}.") for other in found) and _gives_back(network, name, candidates[name]):
            found.append(name)
    order = [name for name in candidates if name in found]
    return [_block(name, candidates[name], network.layers, families) for name in order]


def _block(name: str, inside: list[str], layers: Mapping[str, Layer], families: list[Family]) -> Block:
    own = [family for family in families if set(family.layers) <= set(inside)]
    kept = {node for family in own for node in family.nodes}
    linear = [layer for layer in inside if isinstance(layers[layer].kind, LinearKind)]
    return Block(name, tuple(inside), tuple(layer for layer in linear if (layer, OUT) not in kept))


def _shape_keeping(network: Network, names: Mapping[str, Any]) -> list[str]:
    """The modules that run once and give one tensor for one of the same shape."""
    calls: dict[str, int] = {}
    given: dict[str, Tensor] = {}
    same: dict[str, bool] = {}

    def before(name: str, x: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        given[name] = x

    def after(name: str, result: Any) -> None:
        same[name] = isinstance(result, Tensor) and result.shape == given[name].shape

    with hooks(network.model, names, before, after):
        run(network.model, network.sample, network.inputs.forward)
    return [name for name, fits in same.items() if fits and calls[name] == 1]


def _gives_back(network: Network, name: str, layers: list[str]) -> bool:
    """Whether a module gives its input back when all products inside are zero, and can be left out."""
    given: list[Tensor] = []
    back: list[bool] = []

    def before(at: str, x: Tensor) -> None:
        if at == name:
            given.append(x.clone())

    def after(at: str, result: Any) -> Any:
        if at == name:
            back.append(bool(given[0].any()) and torch.equal(result, given[0]))
            return None
        return each_tensor(result, torch.zeros_like)

    model, forward = network.model, network.inputs.forward
    with hooks(model, dict.fromkeys([name, *layers]), before, after):
        expected = all_outputs(run(model, network.sample, forward))
    if back != [True]:
        return False
    module = take_out(model, name)
    try:
        actual = all_outputs(run(model, network.sample, forward))
    except Exception:  # whatever the code wants of the module beside calling it
        return False
    finally:
        put_in_place(model, name, module)
    return len(actual) == len(expected) and all(map(nearly_equal, actual, expected))
