"""A network on its way: what is known of the original, and what is left of it after each round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from waterfill.calibration.calibrate import calibrate
from waterfill.channels.choice.costs import output_weights, readers_of
from waterfill.channels.choice.plan import CHANNELS, MACS, TIME, Plan, Units
from waterfill.channels.choice.refit import Targets, refit
from waterfill.channels.choice.times import Times
from waterfill.channels.graph.blocks import Block, blocks_of
from waterfill.channels.graph.cut import Choice, cut_choice, failing
from waterfill.channels.graph.groups import Family, families_of
from waterfill.channels.graph.network import IN, OUT, Layer, Network, Node, size_of
from waterfill.channels.graph.removable import removable
from waterfill.channels.graph.streams import streams_of
from waterfill.channels.options import Pruning
from waterfill.channels.result import Pruned, rows_of
from waterfill.errors import BudgetError
from waterfill.importance import Importance
from waterfill.network.channels.gone import fold_norms, take_out
from waterfill.network.channels.layers import LinearKind
from waterfill.network.channels.sizes import merged, note_sizes, noted_sizes, sizes_between
from waterfill.network.running.forward import copy_of
from waterfill.network.running.inputs import Inputs
from waterfill.progress import Progress

_BUDGETS = {
    MACS: ("macs", "all multiplications"),
    CHANNELS: ("keep", "the channels that can go"),
    TIME: ("a share of the time", "the time"),
}
_MEASURED = 4
"""Batches that the importance of outputs is measured on."""


@dataclass(eq=False)
class State:
    """What is left of a network.

    families: of those that can go, by their number among all, what is left of them. origin: by node, which channels of
    the original are left, where some went. refused: by number, why a family turned out not to be removable. out: the
    names of blocks that went.
    """

    network: Network
    families: dict[int, Family]
    origin: dict[Node, Tensor] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    out: list[str] = field(default_factory=list)

    def take(self, choice: Choice, refused: Mapping[Family, str], blocks: Sequence[Block] = ()) -> None:
        """Let the groups of a choice and some blocks go, and never again ask for those of refused families."""
        numbers = {family: number for number, family in self.families.items()}
        self.refused |= {numbers[family]: why for family, why in refused.items()}
        layers, sizes = self.network.layers, dict[Node, int]()
        for name, layer in layers.items():
            sizes |= {(name, side): size_of(layer, side) for side in (IN, OUT)}
        kept = cut_choice(self.network, choice)
        for block in blocks:
            take_out(self.network.model, block.name)
        self.out += [block.name for block in blocks]
        moved: dict[Node, Tensor] = {}  # where each channel of a node is now
        for name, sides in kept.items():
            for side, channels in sides.items():
                node = name, side
                origin = self.origin.get(node)
                self.origin[node] = channels if origin is None else origin[channels]
                moved[node] = torch.full((sizes[node],), -1, dtype=torch.int64, device="cpu")
                moved[node][channels] = torch.arange(len(channels), dtype=torch.int64, device="cpu")
        self.network = Network(self.network.model, self.network.inputs)
        left = {n: f for n, f in self.families.items() if n not in self.refused}
        found = {n: _moved(family, set(choice.get(family, ())), moved) for n, family in left.items()}
        there = self.network.layers
        self.families = {n: within(family, there) for n, family in found.items() if there.keys() & set(family.layers)}


def within(family: Family, layers: Mapping[str, Layer]) -> Family:
    """A family as far as it is of some layers."""
    if layers.keys() >= set(family.layers):
        return family
    groups = tuple({node: c for node, c in group.items() if node[0] in layers} for group in family.groups)
    return Family(groups, attributes=family.attributes)


def _moved(family: Family, gone: set[int], moved: Mapping[Node, Tensor]) -> Family:
    """A family without some groups, its channels where they are now."""
    groups = [group for i, group in enumerate(family.groups) if i not in gone]
    left = tuple({n: moved[n][c] if n in moved else c for n, c in group.items()} for group in groups)
    return Family(left, attributes=family.attributes)


@dataclass(frozen=True, eq=False)
class Work:
    """A network about to be pruned.

    original: as it was. families: of its channels, with reasons. importance: of its weights. weights: of the outputs
    of its layers. unit: of the budget. blocks: that may go whole. times: of its layers, where the unit is time.
    """

    original: Network
    families: list[Family]
    importance: Mapping[str, Importance]
    weights: Mapping[str, Tensor]
    how: Pruning
    targets: Targets
    units: Units
    blocks: list[Block]

    @classmethod
    def begin(cls, model: nn.Module, inputs: Inputs, how: Pruning, unit: str) -> "Work":
        """Trace the channels of a network and measure what they are worth. Raises BadInput, BudgetError."""
        original = Network(copy_of(model).eval(), inputs)
        families = removable(original, families_of(original))
        if all(family.reason for family in families):
            why = "; ".join(": ".join(filter(None, (family.name, family.reason))) for family in families[:4])
            raise BudgetError(f"no channel of the {type(model).__name__} can go: {why or 'it runs no known layer'}")
        measured = calibrate(original.model, inputs.spread(_MEASURED), importance="auto", forward=inputs.forward)
        importance = dict(measured)
        weights = output_weights(original, importance)
        wanted = unit == TIME if how.blocks is None else how.blocks
        blocks = blocks_of(original, families) if wanted else []
        targets = Targets(
            original, streams_of(original, blocks)
        )  # without blocks that go it was measured to gain nothing
        units = time_units(original, how, blocks) if unit == TIME else Units(unit)
        return cls(original, families, importance, weights, how, targets, units, blocks)

    def start(self) -> State:
        """The network before anything went."""
        network = Network(copy_of(self.original.model), self.original.inputs)
        return State(network, {n: family for n, family in enumerate(self.families) if not family.reason})

    def pruned(self, share: float) -> Pruned:
        """The network with at most so much of it left. Raises BudgetError."""
        return self.result(self.reduced(share))

    def reduced(self, share: float, state: State | None = None) -> State:
        """What is left after all rounds, of the whole or of what was left before. Raises BudgetError."""
        state, rounds = state or self.start(), self.how.rounds
        plan = self.plan(state)
        whole, least = self.whole, plan.least
        if least > share * whole:
            name, of = _BUDGETS[self.units.name]
            even = f" in multiples of {self.how.multiple}" if (self.how.multiple or 1) > 1 else ""
            raise BudgetError(
                f"{name}={share:.4g} cannot be met: with the fewest channels{even}, {least / whole:.4g} of {of} "
                "are left; the table of a larger budget says what stays, and why"
            )
        before = plan.left
        for number in range(1, rounds + 1):
            most = before * (share * whole / before) ** (number / rounds)
            self._round(state, plan if number == 1 else self.plan(state), most)
            if callable(self.how.progress):
                self.how.progress(Progress("pruning", number, rounds, number, rounds))
        while (plan := self.plan(state)) and plan.left > share * whole:  # a family was refused
            if plan.least > share * whole:
                raise BudgetError(f"a share of {share:.4g} cannot be met: {'; '.join(state.refused.values())}")
            self._round(state, plan, share * whole)
        return state

    def _round(self, state: State, plan: Plan, most: float) -> None:
        """Let channels and blocks go until so much is left, and fit the others."""
        plan.until(lambda plan: plan.left <= most)
        choice = {family: sorted(numbers) for family, numbers in plan.gone.items() if numbers}
        choice = {family: n for family, n in choice.items() if not any(block.holds(family) for block in plan.out)}
        refused = failing(state.network, choice)
        state.take({family: n for family, n in choice.items() if family not in refused}, refused, plan.out)
        if self.how.refit and (state.origin or state.out):
            refit(state.network, self.targets, state.origin, self.how.damping)

    def plan(self, state: State) -> Plan:
        """A plan for what is left, by what the channels are worth now."""
        rows = {}
        for name, value in self.weights.items():
            layer, left = self.original.layers[name], state.origin.get((name, OUT))
            assert isinstance(layer.kind, LinearKind)
            rows[name] = value if left is None else value[layer.kind.rows_of(layer.module, left)]
        families = list(state.families.values())
        blocks = [block for block in self.blocks if block.name not in state.out]
        closing = [name for block in blocks for name in block.closing]
        readers = readers_of(state.network, families, (self.importance, rows), state.origin, closing)
        return Plan(state.network.layers, families, readers, self.how.multiple or 1, self.units, blocks)

    @cached_property
    def whole(self) -> float:
        """What there was at first, in the unit of the budget."""
        families = [family for family in self.families if not family.reason]
        return Plan(self.original.layers, families, {}, 1, self.units, self.blocks).left

    def as_returned(self, model: nn.Module) -> nn.Module:
        """A copy of a smaller network, its norms folded where that is asked for."""
        if not self.how.fold:
            return copy_of(model)
        return fold_norms(model, self.original.sample, forward=self.original.inputs.forward)

    def result(self, state: State) -> Pruned:
        """The smaller network and what is known of it."""
        before, after = self.original, Network(self.as_returned(state.network.model), self.original.inputs)
        note_sizes(after.model, merged(noted_sizes(before.model), sizes_between(before.model, after.model)))
        families = [f.refused(state.refused[n]) if n in state.refused else f for n, f in enumerate(self.families)]
        left = {n: 0 for n, f in enumerate(families) if after.layers.keys().isdisjoint(f.layers)}
        left |= {number: len(family.groups) for number, family in state.families.items()}
        model, macs = after.model.eval(), (macs_of(before), macs_of(after))
        return Pruned(model, noted_sizes(model), macs, rows_of(families, left), blocks=tuple(state.out))


def macs_of(network: Network) -> int:
    """Multiplications of all layers for one input."""
    return sum(layer.macs(layer.kind.sizes(layer.module)) for layer in network.layers.values())


def time_units(network: Network, how: Pruning, blocks: Sequence[Block]) -> Units:
    """Milliseconds as the unit: of layers by their channels, of blocks beside their layers, and of all else.

    Norms that are to be folded take none.
    """
    times = Times(network, how.batch)
    times.watch(["", *network.layers, *(block.name for block in blocks)])
    free = set(network.norm_after.values()) if how.fold else set[str]()

    def amount(layer: Layer, sizes: tuple[int, int]) -> float:
        return 0.0 if layer.name in free else times.of(layer, sizes)

    each = {name: times.of(layer, layer.kind.sizes(layer.module)) for name, layer in network.layers.items()}
    beside = times.beside({block.name: sum(each[name] for name in block.layers) for block in blocks})
    fixed = max(0.0, times.module("") - sum(each.values()) - sum(beside.values()))
    return Units(TIME, amount, beside, fixed)
