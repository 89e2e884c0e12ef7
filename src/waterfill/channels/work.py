"""A network on its way: what is known of the original, and what is left of it after each round."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from waterfill.calibration.calibrate import calibrate
from waterfill.channels.choice.costs import output_weights, readers_of
from waterfill.channels.choice.plan import MACS, Plan
from waterfill.channels.choice.refit import Targets, refit
from waterfill.channels.graph.cut import Choice, cut_choice, failing
from waterfill.channels.graph.groups import Family, families_of
from waterfill.channels.graph.network import IN, OUT, Network, Node, size_of
from waterfill.channels.graph.removable import removable
from waterfill.channels.options import Pruning
from waterfill.channels.result import Pruned, rows_of
from waterfill.errors import BudgetError
from waterfill.importance import Importance
from waterfill.network.channels.layers import LinearKind
from waterfill.network.channels.sizes import merged, note_sizes, noted_sizes, sizes_between
from waterfill.network.running.forward import copy_of
from waterfill.network.running.inputs import Inputs
from waterfill.progress import Progress

_MEASURED = 4
"""Batches that the importance of outputs is measured on."""


@dataclass(eq=False)
class State:
    """What is left of a network.

    families: of those that can go, by their number among all, what is left of them. origin: by node, which channels of
    the original are left, where some went. refused: by number, why a family turned out not to be removable.
    """

    network: Network
    families: dict[int, Family]
    origin: dict[Node, Tensor] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)

    def take(self, choice: Choice, refused: Mapping[Family, str]) -> None:
        """Let the groups of a choice go, and never again ask for those of refused families."""
        numbers = {family: number for number, family in self.families.items()}
        self.refused |= {numbers[family]: why for family, why in refused.items()}
        layers, sizes = self.network.layers, dict[Node, int]()
        for name, layer in layers.items():
            sizes |= {(name, side): size_of(layer, side) for side in (IN, OUT)}
        kept = cut_choice(self.network, choice)
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
        self.families = {n: _moved(family, set(choice.get(family, ())), moved) for n, family in left.items()}


def _moved(family: Family, gone: set[int], moved: Mapping[Node, Tensor]) -> Family:
    """A family without some groups, its channels where they are now."""
    groups = [group for i, group in enumerate(family.groups) if i not in gone]
    left = tuple({n: moved[n][c] if n in moved else c for n, c in group.items()} for group in groups)
    return Family(left, attributes=family.attributes)


@dataclass(frozen=True, eq=False)
class Work:
    """A network about to be pruned.

    original: as it was. families: of its channels, with reasons. importance: of its weights. weights: of the outputs
    of its layers. unit: of the budget.
    """

    original: Network
    families: list[Family]
    importance: Mapping[str, Importance]
    weights: Mapping[str, Tensor]
    how: Pruning
    targets: Targets
    unit: str = MACS

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
        return cls(original, families, importance, weights, how, Targets(original), unit)

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
        whole, least = self.whole, self.least(plan)
        if least > share * whole:
            name, of = ("macs", "all multiplications") if self.unit == MACS else ("keep", "the channels that can go")
            even = f" in multiples of {self.how.multiple}" if (self.how.multiple or 1) > 1 else ""
            raise BudgetError(
                f"{name}={share:.4g} cannot be met: with the fewest channels{even}, {least / whole:.4g} of {of} "
                "are left; the table of a larger budget says what stays, and why"
            )
        before = self.measure(plan)
        for number in range(1, rounds + 1):
            most = before * (share * whole / before) ** (number / rounds)
            self._round(state, plan if number == 1 else self.plan(state), most)
            if callable(self.how.progress):
                self.how.progress(Progress("pruning", number, rounds, number, rounds))
        while (plan := self.plan(state)) and self.measure(plan) > share * whole:  # a family was refused
            if self.least(plan) > share * whole:
                raise BudgetError(f"a share of {share:.4g} cannot be met: {'; '.join(state.refused.values())}")
            self._round(state, plan, share * whole)
        return state

    def _round(self, state: State, plan: Plan, most: float) -> None:
        """Let channels go until so much is left, and fit the others."""
        plan.until(lambda plan: self.measure(plan) <= most)
        choice = {family: sorted(numbers) for family, numbers in plan.gone.items() if numbers}
        refused = failing(state.network, choice)
        state.take({family: numbers for family, numbers in choice.items() if family not in refused}, refused)
        if self.how.refit and state.origin:
            refit(state.network, self.targets, state.origin, self.how.damping)

    def plan(self, state: State) -> Plan:
        """A plan for what is left, by what the channels are worth now."""
        rows = {}
        for name, value in self.weights.items():
            layer, left = self.original.layers[name], state.origin.get((name, OUT))
            assert isinstance(layer.kind, LinearKind)
            rows[name] = value if left is None else value[layer.kind.rows_of(layer.module, left)]
        families = list(state.families.values())
        readers = readers_of(state.network, families, (self.importance, rows), state.origin)
        return Plan(state.network.layers, families, readers, self.how.multiple or 1, self.unit)

    @property
    def whole(self) -> float:
        """What there was at first, in the unit of the budget."""
        if self.unit == MACS:
            return float(macs_of(self.original))
        return float(sum(len(family.groups) for family in self.families if not family.reason))

    def measure(self, plan: Plan) -> float:
        """How much is left, in the unit of the budget."""
        return float(plan.macs if self.unit == MACS else plan.groups)

    def least(self, plan: Plan) -> float:
        """How much would be left if all that can went."""
        return float(plan.least_macs if self.unit == MACS else sum(map(plan.least_of, plan.families)))

    def result(self, state: State) -> Pruned:
        """The smaller network and what is known of it."""
        before, after = self.original, Network(copy_of(state.network.model), self.original.inputs)
        note_sizes(after.model, merged(noted_sizes(before.model), sizes_between(before.model, after.model)))
        families = [f.refused(state.refused[n]) if n in state.refused else f for n, f in enumerate(self.families)]
        left = {number: len(family.groups) for number, family in state.families.items()}
        model = after.model.eval()
        return Pruned(model, noted_sizes(model), (macs_of(before), macs_of(after)), rows_of(families, left))


def macs_of(network: Network) -> int:
    """Multiplications of all layers for one input."""
    return sum(layer.macs(layer.kind.sizes(layer.module)) for layer in network.layers.values())
