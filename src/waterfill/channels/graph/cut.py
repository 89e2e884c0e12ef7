"""Takes groups of channels out of a network, and checks that nothing else changes by it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from waterfill.channels.graph.groups import Family, Group
from waterfill.channels.graph.network import Layer, Network, all_outputs, run, size_of
from waterfill.network.batch_norm import nearly_equal
from waterfill.network.channels.kind import entries, keep, tensor_of
from waterfill.network.channels.sizes import held_by
from waterfill.network.running.batches import first_of

_CHECKED = 2  # inputs
Choice = Mapping[Family, Sequence[int]]
"""By family, the numbers of its groups that go."""
Kept = dict[str, dict[str, Tensor]]
"""By layer and side, the channels that stay (int64, in order), where some go."""


def chosen(choice: Choice) -> list[Group]:
    """The groups of a choice."""
    return [family.groups[i] for family, numbers in choice.items() for i in numbers]


def kept_of(layers: Mapping[str, Layer], groups: Iterable[Group]) -> Kept:
    """What stays of each layer without these groups."""
    gone: dict[str, dict[str, list[Tensor]]] = {}
    for group in groups:
        for (name, side), channels in group.items():
            gone.setdefault(name, {}).setdefault(side, []).append(channels)
    kept: Kept = {}
    for name, sides in gone.items():
        for side, some in sides.items():
            stays = torch.ones(size_of(layers[name], side), dtype=torch.bool, device="cpu")
            stays[torch.cat(some)] = False
            kept.setdefault(name, {})[side] = stays.nonzero()[:, 0]
    return kept


def cut_choice(network: Network, choice: Choice) -> Kept:
    """Take the groups of a choice out of a network, in place; what stays of each layer."""
    kept = kept_of(network.layers, chosen(choice))
    cut(network.layers, kept)
    for family, numbers in choice.items():
        whole = len(family.groups)
        for name, key in family.attributes:
            module = network.model.get_submodule(name)
            setattr(module, key, getattr(module, key) * (whole - len(numbers)) // whole)
    return kept


def cut(layers: Mapping[str, Layer], kept: Kept) -> None:
    """Take channels out of layers, in place; tensors that layers share stay shared."""
    made: dict[int, nn.Parameter] = {}
    for name, sides in kept.items():
        module = layers[name].module
        before = {key: (id(value), value) for key, value in module._parameters.items() if value is not None}
        keep(module, layers[name].kind, sides)
        for key, (number, _) in before.items():
            value = module._parameters[key]
            if value is not None and id(value) != number:
                module._parameters[key] = made.setdefault(number, value)


@contextmanager
def restored(network: Network, choice: Choice) -> Iterator[None]:
    """A block after which the modules that a choice changes are what they were."""
    names = {name for family in choice for name in (*family.layers, *(module for module, _ in family.attributes))}
    back = held_by(network.model.get_submodule(name) for name in names)
    try:
        yield
    finally:
        back()


def failing(network: Network, choice: Choice) -> dict[Family, str]:
    """The families of a choice that cannot go as was chosen, each with the reason.

    The network without their channels must say what it says where nothing reads these channels.
    """
    if not choice or not problem(network, choice):
        return {}
    found = {family: why for family in choice if (why := problem(network, {family: choice[family]}))}
    fine = {family: numbers for family, numbers in choice.items() if family not in found}
    if fine and problem(network, fine):
        together: dict[Family, Sequence[int]] = {}
        for family, numbers in fine.items():
            why = problem(network, together | {family: numbers})
            if why:
                found[family] = why
            else:
                together[family] = numbers
    return found


def problem(network: Network, choice: Choice) -> str:
    """Why the network without the groups of a choice is not what it is where they are not read; "" if it is."""
    layers, kept = network.layers, kept_of(network.layers, chosen(choice))
    batch = first_of(network.inputs.first, _CHECKED)
    forward = network.inputs.forward
    with restored(network, choice):
        _unread(layers, kept)
        expected = all_outputs(run(network.model, batch, forward))
    with restored(network, choice):
        cut_choice(network, choice)
        try:
            actual = all_outputs(run(network.model, batch, forward))
        except Exception as error:  # whatever the code says to sizes that it was not written for
            message = str(error).splitlines()[0] if str(error) else ""
            return f"its code wants the size that it has: {type(error).__name__}: {message}"
    states = any(layers[name].kind.state for name in kept)  # which are returned, and whose sizes may differ
    pairs = list(zip(actual, expected, strict=False))
    pairs = pairs[:1] + [(a, b) for a, b in pairs[1:] if not states or a.shape == b.shape]
    if len(actual) == len(expected) and all(nearly_equal(a, b) for a, b in pairs):
        return ""
    return "without these channels the outputs are others than with zeros in them: its code counts on their number"


@torch.no_grad()
def _unread(layers: Mapping[str, Layer], kept: Kept) -> None:
    """Set to zero what is multiplied with channels that are not kept."""
    for name, sides in kept.items():
        layer = layers[name]
        for key, axes in layer.kind.axes(layer.module).items():
            for dim, axis in enumerate(axes):
                value = tensor_of(layer.module, key)
                if value is None or axis is None or not axis.reads or axis.side not in sides:
                    continue
                size = size_of(layer, axis.side)
                shown = torch.zeros(axis.blocks * size, dtype=torch.bool, device="cpu")
                shown[entries(axis, sides[axis.side], size)] = True
                hidden = (~shown).nonzero()[:, 0].to(value.device)
                changed = value.detach().index_fill(dim, hidden, 0)
                if key in layer.module._parameters:
                    layer.module._parameters[key] = nn.Parameter(changed, requires_grad=False)
        layer.kind.settle(layer.module)
