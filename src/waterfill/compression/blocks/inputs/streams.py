"""The hidden states of both networks before a block, and what its weights get from them."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from waterfill.compression.blocks.inputs.moments import GroupMoments, Moments, StackMoments, half_of
from waterfill.compression.blocks.inputs.recording import Stage, recorded, stages_of, uses_in_all
from waterfill.compression.blocks.inputs.sums import Sums, gap_between, points_of
from waterfill.compression.blocks.source import Stretch
from waterfill.compression.steps.recorded import Recorded
from waterfill.network.blocks.call import BlockCall
from waterfill.network.blocks.chain import Chain
from waterfill.network.blocks.hidden import HiddenStates
from waterfill.network.layout import STACK


@dataclass(frozen=True, eq=False)
class Streams:
    """The hidden states before a block, in both networks, and how it is run on them. closed: batches of which those
    after the compressed block are known but for the change of one weight."""

    chain: Chain
    states: HiddenStates
    number: int
    calls: Sequence[BlockCall]
    closed: set[int] = field(default_factory=set)

    def run(self, key: str, j: int, block: nn.Module) -> Tensor:
        """The hidden state after the block for a batch. key: "x" of the original, "y" of the compressed network."""
        return self.chain.run(block, self.calls[j], self.states.get(f"{key}{self.number}-{j}"))

    def keep(self, key: str, j: int, after: Tensor) -> None:
        """Keep a hidden state after the block."""
        self.states.put(f"{key}{self.number + 1}-{j}", after)

    def advance(self, key: str, j: int, block: nn.Module) -> None:
        """Run the block and keep what comes of it."""
        self.keep(key, j, self.run(key, j, block))

    def close(self, j: int, after: Tensor, inputs: Tensor) -> None:
        """Keep the hidden state after the compressed block with one weight as it was, and the inputs of that weight."""
        self.keep("y", j, after)
        self.states.put(f"e{self.number}-{j}", inputs)
        self.closed.add(j)

    def change(self, j: int, change: Tensor) -> None:
        """Add what the change [rows, cols] of that weight makes of its inputs."""
        state, inputs = self.states.get(f"y{self.number + 1}-{j}"), self.states.get(f"e{self.number}-{j}")
        self.keep("y", j, state + (inputs @ change.to(inputs).mT).reshape(state.shape).to(state))

    def drop(self) -> None:
        """Forget what is before the block."""
        for key in "xye":
            self.states.drop(f"{key}{self.number}-")


class OriginalInputs:
    """The inputs of the weights of an original block, by batch: kept where memory allows, else recorded stage by stage.

    stages: in which the weights are fitted. points: where weights are added to the hidden state. kept: whether inputs
    are kept; the hidden states after the block are then there too. closing: the weight that alone is fitted last, and
    whose outputs are added to the hidden state that the block returns; None where there is none.
    """

    def __init__(self, stretch: Stretch, streams: Streams, memory: int) -> None:
        self._stretch, self._streams = stretch, streams
        self._kept: list[Inputs] = []
        first, order = self._all(0)
        self.points = points_of(stretch, (first.recorded, order), partial(streams.run, "x", 0))
        batches = len(streams.calls)
        tensors = {id(x): x.nbytes for x in (*(one.x for one in first.recorded), *first.seen)}
        self.kept = batches * sum(tensors.values()) <= memory
        rest = [self._all(j) for j in range(1, batches)] if self.kept else []
        if self.kept:
            self._kept = [first, *(one for one, _ in rest)]
        uses = uses_in_all([order, *(other for _, other in rest)], stretch.layouts)
        self.stages = stages_of([one for each in self._kept or [first] for one in each.recorded], uses, stretch.layouts)
        self.closing = self._closing(first)

    def of(self, j: int, stage: Stage) -> "Inputs":
        """The inputs of the weights of a stage for a batch."""
        if self.kept:
            return self._kept[j]
        return inputs_of(self._stretch, self._stretch.module, partial(self._streams.run, "x", j), stage.uses)[0]

    def forget(self, j: int) -> None:
        """Give back what is kept of a batch."""
        if self.kept:
            self._kept[j] = Inputs([], [])

    def _closing(self, first: "Inputs") -> str | None:
        last = self.stages[-1] if self.stages else None
        if last is None or len(last.uses) > 1:
            return None
        name = next(iter(last.uses))
        wide = all(one.x.dtype == torch.float32 for one in first.recorded if one.view.name == name)
        owned = name in dict(self._stretch.module.named_parameters(remove_duplicate=False))
        return name if wide and owned and self.points.get(name) == len(first.seen) - 1 else None

    def _all(self, j: int) -> "tuple[Inputs, dict[str, int]]":
        def run(block: nn.Module) -> Tensor:
            after = self._streams.run("x", j, block)
            self._streams.keep("x", j, after)
            return after

        return inputs_of(self._stretch, self._stretch.module, run)


@dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of weights of a block for a batch, and the hidden states to which weights add, as of `Sums`."""

    recorded: list[Recorded]
    seen: list[Tensor]

    def at(self, point: int | None) -> Tensor | None:
        """One of these states; None where the run did not come so far."""
        return self.seen[point] if point is not None and point < len(self.seen) else None


def inputs_of(
    stretch: Stretch, block: nn.Module, run: Callable[[nn.Module], Tensor], uses: Mapping[str, int] | None = None
) -> tuple[Inputs, dict[str, int]]:
    """The inputs of the weights that a run of a block, or of its copy, uses, and how often. uses: as of `recorded`."""
    sums = Sums(block, partial(run, block))
    found, order = recorded(block, stretch.layouts, sums, uses)
    return Inputs(found, sums.seen), order


def moments_of(
    stage: Stage, stretch: Stretch, made: nn.Module, inputs: OriginalInputs, streams: Streams
) -> dict[str, Moments]:
    """The moments of the inputs of each weight of a stage; one object for those with the same inputs.

    made: the block with the weights before this stage compressed. With its closing weight it has run to its end: what
    it returns is kept, and lacks but the change of that weight.
    """
    stacks = {name: StackMoments() for name in stage.uses if stretch.layouts[name].role == STACK}
    plain = {group[0]: GroupMoments() for group in stage.groups if group[0] not in stacks}
    added = [name for name in stage.uses if name in inputs.points]  # two would make up for the same gap twice
    point = inputs.points[added[0]] if len(added) == 1 and added[0] in plain else None
    batches = len(streams.calls)
    for j in range(batches):
        after, _ = inputs_of(stretch, made, partial(streams.run, "y", j), stage.uses)
        original = inputs.of(j, stage)
        gap = gap_between(original.at(point), after.at(point))
        before = inputs_by_name(original.recorded, plain)
        for name, uses in inputs_by_name(after.recorded, plain).items():
            for old, new in zip(before.get(name, ()), uses, strict=False):
                plain[name].add((old.x, new.x), half_of(j, batches), gap if name in added else None)
                if name == inputs.closing and (state := after.at(point)) is not None:
                    streams.close(j, state, new.x)
                    inputs.forget(j)
        for one in after.recorded:
            if one.view.name in stacks and one.view.matrix is not None:
                stacks[one.view.name].add(one.view.matrix, one.x, half_of(j, batches))
    return stacks | {name: plain[group[0]] for group in stage.groups if group[0] in plain for name in group}


def inputs_by_name(found: Iterable[Recorded], names: Container[str]) -> dict[str, list[Recorded]]:
    """Inputs of whole matrices by the names of their weights."""
    by_name: dict[str, list[Recorded]] = {}
    for one in found:
        if one.view.name in names and one.geometry is None:
            by_name.setdefault(one.view.name, []).append(one)
    return by_name
