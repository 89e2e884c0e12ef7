"""Groups of channels that go together, in families of groups alike, from what depends on what."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from waterfill.channels.graph.network import IN, OUT, Layer, Network, Node, node_of, size_of
from waterfill.channels.graph.reach import OUTPUTS, Reach

Group = dict[Node, Tensor]
"""Channels that go together: by node, their numbers (int64, in order)."""
_WHOLE = "all its channels are mixed before a known layer takes them, as by a norm over them"
_FIXED = "it is the network's output"


@dataclass(frozen=True, eq=False)
class Family:
    """Groups alike: of the same layers, as many channels in each.

    reason: why none of them can go; empty where they can. attributes: of modules by name, whole numbers that are
    scaled with the number of groups.
    """

    groups: tuple[Group, ...]
    reason: str = ""
    attributes: tuple[tuple[str, str], ...] = ()

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(self.groups[0])

    @property
    def layers(self) -> list[str]:
        """The layers it reaches into, in the order of the run."""
        return list(dict.fromkeys(name for name, _ in self.nodes))

    @property
    def name(self) -> str:
        """The first layer that makes its channels."""
        made = [name for name, side in self.nodes if side == OUT]
        return made[0] if made else self.layers[0]

    def refused(self, reason: str) -> "Family":
        return Family(self.groups, reason)


@dataclass
class _Sets:
    """Disjoint sets of numbers, joined two by two."""

    parent: list[int] = field(default_factory=list)

    def find(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def join(self, numbers: Iterable[int]) -> None:
        roots = [self.find(i) for i in numbers]
        for root in roots[1:]:
            self.parent[self.find(root)] = self.find(roots[0])


class _Channels:
    """The channels of all layers, numbered one after the other, and which of them are joined."""

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        nodes = dict.fromkeys(node_of(layer, side) for layer in layers.values() for side in (IN, OUT))
        sizes = {node: size_of(layers[node[0]], node[1]) for node in nodes} | {OUTPUTS: 1}
        self.start: dict[Node, int] = {}
        total = 0
        for node, size in sizes.items():
            self.start[node] = total
            total += size
        self.sizes = sizes
        self.sets = _Sets(list(range(total)))

    def join(self, one: Node, channels: Tensor, other: Node, others: Tensor) -> None:
        """Join all channels of a node that are given with all those of another."""
        own = [self.start[one] + int(i) for i in channels]
        self.sets.join([*own, *(self.start[other] + int(i) for i in others)])

    def components(self) -> Iterator[tuple[Group, bool]]:
        """The sets as groups, and whether they reach the outputs of the network."""
        fixed = self.sets.find(self.start[OUTPUTS])
        found: dict[int, dict[Node, list[int]]] = {}
        for node, start in self.start.items():
            for i in range(self.sizes[node] if node != OUTPUTS else 0):
                found.setdefault(self.sets.find(start + i), {}).setdefault(node, []).append(i)
        for root, nodes in found.items():
            yield {n: torch.tensor(c, dtype=torch.int64, device="cpu") for n, c in nodes.items()}, root == fixed


def families_of(network: Network) -> list[Family]:
    """All families of a network, in the order of the run, those that cannot go with the reason. Raises BadInput."""
    layers = network.layers
    channels = _Channels(layers)
    refused: dict[str, str] = {}
    for layer in layers.values():
        _join_within(channels, layer)
        if layer.kind.through:
            continue
        own = node_of(layer, OUT)

        def join(sources: Tensor, node: Node, targets: Tensor, own: Node = own) -> None:
            channels.join(own, sources, node, targets)

        try:
            Reach(network, layer, join).find()
        except Exception as error:  # the model's own code, run on NaN
            refused[layer.name] = f"the model does not run on NaN: {type(error).__name__}: {error}"
            every = torch.arange(size_of(layer, OUT), dtype=torch.int64, device="cpu")
            channels.join(own, every, OUTPUTS, torch.zeros(1, dtype=torch.int64, device="cpu"))
    _join_tied(channels, layers)
    return _sorted(channels, layers, refused)


def _join_within(channels: _Channels, layer: Layer) -> None:
    """Join what a layer itself holds together: both sides of the groups of a convolution, the groups of a norm."""
    bound = layer.kind.bound(layer.module)
    if not bound:
        return
    one, other = node_of(layer, IN), node_of(layer, OUT)
    sides = [torch.arange(channels.sizes[node], dtype=torch.int64, device="cpu").chunk(bound) for node in (one, other)]
    for own, others in zip(*sides, strict=True):
        channels.join(one, own, other, others)


def _join_tied(channels: _Channels, layers: Mapping[str, Layer]) -> None:
    """Join the channels that run over one dimension of one tensor which several layers hold."""
    held: dict[int, list[tuple[Layer, str]]] = {}
    for layer in layers.values():
        for name, value in layer.module.named_parameters(recurse=False):
            held.setdefault(id(value), []).append((layer, name))
    for users in (some for some in held.values() if len(some) > 1):
        axes = [layer.kind.axes(layer.module).get(name, ()) for layer, name in users]
        for dim in range(max(map(len, axes), default=0)):
            run_over = [(user[0], a[dim] if dim < len(a) else None) for user, a in zip(users, axes, strict=True)]
            nodes = [node_of(layer, axis.side) for layer, axis in run_over if axis is not None]
            if len(nodes) < len(users) or any(axis is not None and axis.blocks > 1 for _, axis in run_over):
                nodes.append(OUTPUTS)  # for one of them this dimension is none of channels: it stays
            for node in nodes[1:]:
                for i in range(channels.sizes[nodes[0]]):
                    one = torch.tensor([i], dtype=torch.int64, device="cpu")
                    channels.join(nodes[0], one, node, torch.zeros_like(one) if node == OUTPUTS else one)


def _sorted(channels: _Channels, layers: Mapping[str, Layer], refused: Mapping[str, str]) -> list[Family]:
    """The components that some layer makes and another takes, as families."""
    alike: dict[tuple[object, ...], list[Group]] = {}
    for group, fixed in channels.components():
        if not any(side == OUT and not layers[name].kind.through for name, side in group):
            continue  # the inputs of the network
        key = (fixed, *((node, len(numbers)) for node, numbers in group.items()))
        alike.setdefault(key, []).append(group)
    made = []
    for key, groups in alike.items():
        family = Family(tuple(groups))
        whys = [refused[name] for name in family.layers if name in refused]
        reason = whys[0] if whys else _FIXED if key[0] else _why_not(family, layers)
        made.append(family.refused(reason) if reason else family)
    return sorted(made, key=lambda family: layers[family.name].number)


def _why_not(family: Family, layers: Mapping[str, Layer]) -> str:
    """Why no group of a family can go, from the family alone."""
    if len(family.groups) == 1:
        return _WHOLE
    if not any(side == IN for _, side in family.nodes):
        return "no layer takes it"
    return ""
