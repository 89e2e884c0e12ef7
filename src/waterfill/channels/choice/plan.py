"""Chooses what goes: again and again the channels, or whole blocks, whose loss costs least for what it saves."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from waterfill.channels.choice.costs import Key, Reader
from waterfill.channels.graph.blocks import Block
from waterfill.channels.graph.groups import Family
from waterfill.channels.graph.network import IN, OUT, Layer, Node, node_of, size_of
from waterfill.network.channels.layers import LinearKind

MACS, TIME, CHANNELS = "macs", "time", "channels"
Amount = Callable[[Layer, tuple[int, int]], float]
"""What a layer takes for one input, were it of these sizes: multiplications, or milliseconds."""
Item = Family | Block


def by_macs(layer: Layer, sizes: tuple[int, int]) -> float:
    """Multiplications."""
    return float(layer.macs(sizes))


@dataclass(frozen=True)
class Units:
    """What is saved: its name, what layers take of it, and by the names of blocks what these take beside their layers.

    fixed: what the network takes beside all of these.
    """

    name: str = MACS
    amount: Amount = by_macs
    beside: Mapping[str, float] = field(default_factory=dict)
    fixed: float = 0.0


@dataclass(frozen=True)
class Step:
    """Groups of one family to go next, or a block: numbers of groups, what they cost, what they save."""

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
    come in multiples of it, as far as there are so many. units: of what is saved. blocks: that can go whole. history:
    families and groups that went, or blocks, and how much was left then.
    """

    layers: Mapping[str, Layer]
    families: Sequence[Family]
    readers: dict[Key, Reader]
    multiple: int = 1
    units: Units = field(default_factory=Units)
    blocks: Sequence[Block] = ()
    gone: dict[Family, list[int]] = field(default_factory=dict)
    cost: float = 0.0
    history: list[tuple[Item, int, float]] = field(default_factory=list)
    _sizes: dict[Node, int] = field(default_factory=dict)
    _steps: dict[Item, Step | None] = field(default_factory=dict)
    _out: list[Block] = field(default_factory=list)
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
    def left(self) -> float:
        """How much there is of what is left, in the unit."""
        if self.units.name == CHANNELS:
            return float(sum(len(family.groups) - len(self.gone[family]) for family in self._families()))
        return self._sum(self._sizes, self._out)

    @property
    def least(self) -> float:
        """How much there would be where nothing more can go."""
        inner = [family for block in self.blocks for family in self.families if block.holds(family)]
        stay = [family for family in self.families if family not in inner]
        if self.units.name == CHANNELS:
            return float(sum(map(self.least_of, stay)))
        sizes = dict(self._sizes)
        for family in stay:
            most = len(family.groups) - len(self.gone[family]) - self.least_of(family)
            for node, channels in family.groups[0].items():
                sizes[node] -= most * len(channels)
        return self._sum(sizes, self.blocks)

    @property
    def out(self) -> list[Block]:
        """The blocks that went."""
        return list(self._out)

    def _families(self) -> list[Family]:
        """The families that are not inside of a block that went."""
        return [family for family in self.families if not any(block.holds(family) for block in self._out)]

    def _sum(self, sizes: Mapping[Node, int], out: Sequence[Block]) -> float:
        """How much a network of these sizes takes without some blocks."""
        gone = {name for block in out for name in block.layers}
        layers = sum(self._amount(layer, sizes) for name, layer in self.layers.items() if name not in gone)
        beside = sum(self.units.beside.get(block.name, 0.0) for block in self.blocks if block not in out)
        return layers + beside + self.units.fixed

    def least_of(self, family: Family) -> int:
        """How many groups of a family stay where nothing more can go."""
        return min(len(family.groups) - len(self.gone[family]), self._even(family))

    def _even(self, family: Family) -> int:
        """Of which its groups that stay are a multiple."""
        size = len(next(iter(family.groups[0].values())))
        return self.multiple // math.gcd(size, self.multiple)

    def until(self, done: Callable[["Plan"], bool]) -> bool:
        """Let channels and blocks go until `done`; False where nothing more can."""
        while not done(self):
            items: list[Item] = [*(block for block in self.blocks if block not in self._out), *self._families()]
            for item in items:
                if item not in self._steps:
                    self._steps[item] = self._next(item) if isinstance(item, Family) else self._without(item)
            ready = [(step.rate, i) for i, item in enumerate(items) if (step := self._steps[item]) is not None]
            if not ready:
                return False
            item = items[min(ready)[1]]
            if isinstance(item, Family):
                self._take(item)
            else:
                self._leave_out(item)
        return True

    def first(self, share: float, whole: float) -> tuple[dict[Family, list[int]], list[Block]]:
        """The groups and the blocks that had gone when no more than a share of the whole was left."""
        gone: dict[Family, list[int]] = {}
        out: list[Block] = []
        left = math.inf
        for item, number, after in self.history:
            if left <= share * whole:
                break
            if isinstance(item, Family):
                gone.setdefault(item, []).append(number)
            else:
                out.append(item)
            left = after
        return gone, out

    def _amount(self, layer: Layer, sizes: Mapping[Node, int] | None = None) -> float:
        known = self._sizes if sizes is None else sizes
        return self.units.amount(layer, (known[node_of(layer, IN)], known[node_of(layer, OUT)]))

    def _without(self, block: Block) -> Step | None:
        """A block as the next step: its closing layers multiply nothing any more."""
        readers = [self.readers[name, "weight"] for name in block.closing if (name, "weight") in self.readers]
        if len(readers) < len(block.closing) or not readers:
            return None
        cost = sum(float(r.costs(torch.arange(len(r.each), dtype=torch.int64, device="cpu")[None])[0]) for r in readers)
        if self.units.name == CHANNELS:
            own = [family for family in self.families if block.holds(family)]
            saving = float(sum(len(family.groups) - len(self.gone[family]) for family in own))
        else:
            saving = self.units.beside.get(block.name, 0.0) + sum(self._amount(self.layers[n]) for n in block.layers)
        return Step((), cost, saving) if saving > 0 else None

    def _leave_out(self, block: Block) -> None:
        step = self._steps[block]
        assert step is not None
        self.cost += step.cost
        self._out.append(block)
        self.history.append((block, -1, self.left))
        inside = set(block.layers)
        for family in self.families:
            self._columns[family] = [(key, columns) for key, columns in self._columns[family] if key[0] not in inside]
        self._steps = {item: kept for item, kept in self._steps.items() if not inside & set(item.layers)}

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
        if self.units.name == CHANNELS:
            return float(count)
        inside = {name for block in self._out for name in block.layers}
        layers = [self.layers[name] for name in family.layers if name not in inside]
        before = sum(map(self._amount, layers))
        sizes = dict(self._sizes)
        for node, channels in family.groups[0].items():
            sizes[node] -= count * len(channels)
        return float(before - sum(self._amount(layer, sizes) for layer in layers))

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
            self.history.append((family, number, self.left))
        layers = set(family.layers)
        self._steps = {item: kept for item, kept in self._steps.items() if layers.isdisjoint(item.layers)}

    def _drop_rows(self, node: Node, channels: Tensor) -> None:
        """The rows that make these channels no longer count."""
        layer = self.layers[node[0]]
        for key in [key for key in self.readers if key[0] == node[0] and node[1] == OUT]:
            if isinstance(layer.kind, LinearKind) and key[1] == "weight":
                self.readers[key].drop_rows(layer.kind.rows_of(layer.module, channels))
