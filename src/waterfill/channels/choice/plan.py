"""Chooses what goes: again and again the channels whose loss costs least for what it saves."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from waterfill.channels.choice.costs import Key, Reader
from waterfill.channels.graph.groups import Family
from waterfill.channels.graph.network import IN, OUT, Layer, Node, node_of, size_of
from waterfill.network.channels.layers import LinearKind

MACS, CHANNELS = "macs", "channels"


@dataclass(frozen=True)
class Step:
    """Groups of one family to go next: their numbers, what they cost, what they save."""

    numbers: tuple[int, ...]
    cost: float
    saving: float

    @property
    def rate(self) -> float:
        return self.cost / max(self.saving, 1e-30)


@dataclass(eq=False)
class Plan:
    """Which groups go, one step after the other.

    layers: of the network. families: those that can go. readers: their weights' costs. multiple: channels of a family
    come in multiples of it, as far as there are so many. unit: what a cost is compared with, multiplications saved
    (MACS), or groups (CHANNELS). history: families, groups that went, multiplications left then.
    """

    layers: Mapping[str, Layer]
    families: Sequence[Family]
    readers: dict[Key, Reader]
    multiple: int = 1
    unit: str = MACS
    gone: dict[Family, list[int]] = field(default_factory=dict)
    cost: float = 0.0
    history: list[tuple[Family, int, int]] = field(default_factory=list)
    _sizes: dict[Node, int] = field(default_factory=dict)
    _steps: dict[Family, Step | None] = field(default_factory=dict)
    _columns: dict[Family, list[tuple[Key, Tensor]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for layer in self.layers.values():
            for side in (IN, OUT):
                self._sizes[node_of(layer, side)] = size_of(layer, side)
        for family in self.families:
            self.gone[family] = []
            self._columns[family] = [
                (key, torch.stack([group[node] for group in family.groups]))
                for key, reader in self.readers.items()
                if (node := (key[0], reader.side)) in family.nodes
            ]

    @property
    def macs(self) -> int:
        """Multiplications for one input of what is left."""
        return sum(map(self._macs, self.layers.values()))

    @property
    def groups(self) -> int:
        """Groups of channels that are left in all families."""
        return sum(len(family.groups) - len(self.gone[family]) for family in self.families)

    @property
    def least_macs(self) -> int:
        """Multiplications where nothing more can go."""
        sizes = dict(self._sizes)
        for family in self.families:
            most = len(family.groups) - len(self.gone[family]) - self.least_of(family)
            for node, channels in family.groups[0].items():
                sizes[node] -= most * len(channels)
        return sum(self._macs(layer, sizes) for layer in self.layers.values())

    def least_of(self, family: Family) -> int:
        """How many groups of a family stay where nothing more can go."""
        return min(len(family.groups) - len(self.gone[family]), self._even(family))

    def _even(self, family: Family) -> int:
        """Of which its groups that stay are a multiple."""
        size = len(next(iter(family.groups[0].values())))
        return self.multiple // math.gcd(size, self.multiple)

    def until(self, done: Callable[["Plan"], bool]) -> bool:
        """Let channels go until `done`; False where nothing more can."""
        while not done(self):
            for family in self.families:
                if family not in self._steps:
                    self._steps[family] = self._next(family)
            ready = [(step.rate, i) for i, f in enumerate(self.families) if (step := self._steps[f]) is not None]
            if not ready:
                return False
            self._take(self.families[min(ready)[1]])
        return True

    def first(self, share: float) -> dict[Family, list[int]]:
        """What had gone when no more than a share of all multiplications was left."""
        whole = sum(layer.macs(layer.kind.sizes(layer.module)) for layer in self.layers.values())
        gone: dict[Family, list[int]] = {}
        left = whole
        for family, number, after in self.history:
            if left <= share * whole:
                break
            gone.setdefault(family, []).append(number)
            left = after
        return gone

    def _macs(self, layer: Layer, sizes: Mapping[Node, int] | None = None) -> int:
        known = self._sizes if sizes is None else sizes
        return layer.macs((known[node_of(layer, IN)], known[node_of(layer, OUT)]))

    def _next(self, family: Family) -> Step | None:
        """The cheapest groups of a family that could go next."""
        count, even = len(family.groups) - len(self.gone[family]), self._even(family)
        wanted = count % even or even
        if count - wanted < 1:
            return None
        one = wanted == 1
        readers = {key: self.readers[key] if one else self.readers[key].copy() for key, _ in self._columns[family]}
        left = [i for i in range(len(family.groups)) if i not in set(self.gone[family])]
        numbers, cost = [], 0.0
        for _ in range(wanted):
            costs = torch.zeros(len(left), dtype=torch.float64, device="cpu")
            for key, columns in self._columns[family]:
                costs += readers[key].costs(columns[left])
            best = int(costs.argmin())
            cost += float(costs[best])
            number = left.pop(best)
            numbers.append(number)
            for key, columns in self._columns[family] if not one else ():
                readers[key].remove(columns[number])
        return Step(tuple(numbers), cost, self._saving(family, wanted))

    def _saving(self, family: Family, count: int) -> float:
        """What is saved without so many groups of a family."""
        if self.unit == CHANNELS:
            return float(count)
        layers = [self.layers[name] for name in family.layers]
        before = sum(map(self._macs, layers))
        sizes = dict(self._sizes)
        for node, channels in family.groups[0].items():
            sizes[node] -= count * len(channels)
        return float(before - sum(self._macs(layer, sizes) for layer in layers))

    def _take(self, family: Family) -> None:
        step = self._steps[family]
        assert step is not None
        self.cost += step.cost
        self.gone[family] += step.numbers
        for number in step.numbers:
            for node, channels in family.groups[number].items():
                self._sizes[node] -= len(channels)
                self._drop_rows(node, channels)
            for key, columns in self._columns[family]:
                self.readers[key].remove(columns[number])
            self.history.append((family, number, self.macs))
        layers = set(family.layers)
        self._steps = {other: kept for other, kept in self._steps.items() if layers.isdisjoint(other.layers)}

    def _drop_rows(self, node: Node, channels: Tensor) -> None:
        """The rows that make these channels no longer count."""
        layer = self.layers[node[0]]
        for key in [key for key in self.readers if key[0] == node[0] and node[1] == OUT]:
            if isinstance(layer.kind, LinearKind) and key[1] == "weight":
                self.readers[key].drop_rows(layer.kind.rows_of(layer.module, channels))
