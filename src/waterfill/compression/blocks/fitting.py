"""The second pass: fits the weights of one block after the other, to the inputs that the compressed blocks before give.

Two streams of hidden states go through the network: the original's, whose inputs are what the weights should answer to,
and the compressed one's. The errors of the blocks before are compensated for as in GPTAQ (arXiv 2504.02692).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from waterfill.compression.allocation.to_size.spend import FILL, Ledger, refit_to_budget
from waterfill.compression.allocation.weight import Damping, Weight
from waterfill.compression.blocks.inputs import GroupMoments, Stage, half_of, recorded, stages_of
from waterfill.compression.blocks.log import Log
from waterfill.compression.blocks.measured import Measured, MeasuredStore, with_energy
from waterfill.compression.blocks.pace import Pace
from waterfill.compression.blocks.source import Source, Stretch, installed, working_copy
from waterfill.compression.blocks.streams import OriginalInputs, Streams, inputs_by_name
from waterfill.compression.blocks.survey import OUTSIDE
from waterfill.compression.steps.choice import best_spec
from waterfill.compression.steps.sequential import with_error
from waterfill.compression.store import KeepingStore
from waterfill.compression.task import Compression
from waterfill.importance import Importance
from waterfill.model.entry import decode, restored
from waterfill.network.blocks.call import BlockCall
from waterfill.network.blocks.chain import Chain
from waterfill.network.blocks.hidden import HiddenStates
from waterfill.network.layout import VECTOR, Layout
from waterfill.network.running.forward import as_deployed, copy_of
from waterfill.progress import Progress

_ROUNDS = 6  # of refits of the last weights, as the size of the manifest changes with the parts
_REFITS = 4  # of a weight with much of the budget
_MANIFEST_BITS = 64  # that it may grow by in a round
Run = Callable[[nn.Module], Tensor]
"""(block) -> its hidden state after it, for one batch."""


@dataclass(eq=False)
class Fitting:
    """The second pass over the batches.

    chain: the original network's. states: of both streams, "x" and "y". found: what the first pass left. work: holds
    the results. pace: gives prices. log: how far an earlier run came. late: the weights fitted last, which may be
    fitted again.
    """

    source: Source
    chain: Chain
    batches: Sequence[Any]
    states: HiddenStates
    found: MeasuredStore
    work: Compression[KeepingStore]
    pace: Pace
    log: Log
    late: dict[int, Weight] = field(default_factory=dict)

    def run(self) -> None:
        """Fit every weight."""
        made = replace(self.chain, model=copy_of(self.chain.model, sharing=True))
        with as_deployed(self.chain.model, made.model):
            self.log.replay(self.pace)
            calls = self._begin(made)
            for i in range(max(0, self.log.done), len(self.source.blocks)):
                self._block(i, [own[i] for own in calls])
            self._end(made)

    def settle(self, size: int) -> bool:
        """Fit the last weights again until the file has at most `size` bytes and uses most of them; whether it has."""
        ledger = Ledger({i: self.work.store.price(i) for i in self.pace.spent}, dict(self.pace.spent))
        order = sorted(self.late, key=lambda i: -ledger.bits[i])
        for _ in range(_ROUNDS):
            room = 8.0 * (size - self._overhead(ledger.lengths))
            if FILL * room <= ledger.total <= room:
                break
            refit_to_budget(self.pace.bracket(), max(0.0, room - _MANIFEST_BITS), self._again, ledger, order)
        self.pace.spent.update(ledger.bits)
        return self.file_bytes <= size

    @property
    def file_bytes(self) -> int:
        """Bytes of the file as it is."""
        lengths = [int(self.pace.spent[i] / 8) for i in range(len(self.work.weights))]
        return self.work.file_bytes(lengths)

    def _again(self, i: int, price: float) -> float:
        return self._fitted(i, self.late[i], price)

    def _overhead(self, lengths: list[int]) -> int:
        return self.work.file_bytes(lengths) - sum(lengths)

    def _begin(self, made: Chain) -> list[list[BlockCall]]:
        """Fit what runs before the blocks; the calls of the blocks, batch by batch."""
        calls = []
        stretch = self.source.stretch(None)
        used: dict[str, int] = {}
        for j, batch in enumerate(self.batches):
            if j == 0:
                _, used = recorded(stretch.module, stretch.layouts, partial(self.chain.begin, batch), None)
            first, how = self.chain.begin(batch)
            calls.append(how)
            if self.log.done < 0:
                self.states.put(f"x0-{j}", first)
        front = [name for name in stretch.layouts if name in used]
        vectors = [name for name in self._rest(None, stretch) if name not in used]
        self._fit_all(OUTSIDE, stretch, [*vectors, *front], {})
        self._install(made.model, stretch, [*vectors, *front])
        if self.log.done < 0:
            for j, batch in enumerate(self.batches):
                self.states.put(f"y0-{j}", made.begin(batch)[0])
            self.log.commit(0, self.pace, self.work.store)
        return calls

    def _rest(self, number: int | None, stretch: Stretch) -> list[str]:
        """The names within a stretch of tensors that are no matrices with inputs: vectors, constants."""
        names = [self.work.weights[i].name[len(stretch.prefix) :] for i in self.source.members[number]]
        return [name for name in names if name not in stretch.layouts or stretch.layouts[name].role == VECTOR]

    def _block(self, number: int, calls: Sequence[BlockCall]) -> None:
        stretch = self.source.stretch(number)
        made = working_copy(stretch.module)
        streams = Streams(self.chain, self.states, number, calls)
        inputs = OriginalInputs(stretch, streams, self.work.options.memory)
        self.late = {}
        first = self._rest(number, stretch)
        self._fit_all(str(number), stretch, first, {})
        self._install(made, stretch, first)
        stages = stages_of(*inputs.first, stretch.layouts)
        staged = {name for stage in stages for name in stage.uses} | set(first)
        unused = [name for name in stretch.layouts if name not in staged]
        self._fit_all(str(number), stretch, unused, {})
        self._install(made, stretch, unused)
        for stage in stages:
            moments = self._moments(stage, (made, stretch.layouts), inputs, streams)
            self._fit_all(str(number), stretch, list(stage.uses), moments)
            self._install(made, stretch, list(stage.uses))
        for j in range(len(self.batches)):
            if not inputs.kept:
                streams.advance("x", j, stretch.module)
            streams.advance("y", j, made)
        if number + 1 < len(self.source.blocks):  # the last block's weights are needed once more, to meet the size
            self.log.commit(number + 1, self.pace, self.work.store)
            self.states.drop(f"x{number}-")
            self.states.drop(f"y{number}-")
        self._report(number)

    def _moments(
        self,
        stage: Stage,
        made: tuple[nn.Module, Mapping[str, Layout]],
        inputs: OriginalInputs,
        streams: Streams,
    ) -> dict[str, GroupMoments]:
        """The moments of the inputs of each weight of a stage; one object for those with the same inputs."""
        found: dict[str, GroupMoments] = {}
        for group in stage.groups:
            found |= dict.fromkeys(group, GroupMoments.new())
        leaders = [group[0] for group in stage.groups]
        for j in range(len(self.batches)):
            after, _ = recorded(*made, partial(streams.run, "y", j, made[0]), stage.uses)
            before = inputs_by_name(inputs.of(j, stage), leaders)
            for name, uses in inputs_by_name(after, leaders).items():
                for old, new in zip(before.get(name, ()), uses, strict=False):
                    found[name].add(old.x, new.x, half_of(j, len(self.batches)))
        return found

    def _end(self, made: Chain) -> None:
        """Fit what runs after the blocks."""
        stretch, count = self.source.stretch(None), len(self.source.blocks)
        left = [name for name in stretch.layouts if self._position(stretch, name) not in self.pace.spent]
        if not left:
            return
        layouts = {name: stretch.layouts[name] for name in left}
        streams = {"x": self.chain, "y": made}

        def run(key: str, j: int) -> Tensor:
            return streams[key].end(self.batches[j], self.states.get(f"{key}{count}-{j}"))

        first = recorded(stretch.module, layouts, partial(run, "x", 0))
        for stage in stages_of(*first, layouts):
            groups = {name: GroupMoments.new() for name in stage.uses}
            for j in range(len(self.batches)):
                pairs = [
                    inputs_by_name(
                        recorded(chain.model, layouts, partial(run, key, j), stage.uses)[0], list(stage.uses)
                    )
                    for key, chain in streams.items()
                ]
                for name in pairs[1]:
                    for old, new in zip(pairs[0].get(name, ()), pairs[1][name], strict=False):
                        groups[name].add(old.x, new.x, half_of(j, len(self.batches)))
            self._fit_all(OUTSIDE, stretch, list(stage.uses), groups)
            self._install(made.model, stretch, list(stage.uses))
        unused = [name for name in left if self._position(stretch, name) not in self.pace.spent]
        self._fit_all(OUTSIDE, stretch, unused, {})

    def _position(self, stretch: Stretch, name: str) -> int:
        return self.source.positions[stretch.prefix + name]

    def _fit_all(self, key: str, stretch: Stretch, names: Iterable[str], moments: Mapping[str, GroupMoments]) -> None:
        """Fit some weights of a stretch at one price, in threads."""
        measured = self.found.get(key) or {}
        positions = {self._position(stretch, name): name for name in names}
        todo = [i for i in positions if i not in self.pace.spent]
        price = self.pace.price()
        weights = {}
        for i in todo:
            weight = self.work.weights[i]
            group = moments.get(positions[i])
            weights[i] = self._with_costs(weight, measured.get(weight.name), group)
        bits = self.work.run.workers.map(lambda i: self._fitted(i, weights[i], price), todo)
        for i, spent in zip(todo, bits, strict=True):
            self._noted(i, weights[i], price, spent)
        self.late |= weights

    def _noted(self, i: int, weight: Weight, price: float, bits: float) -> None:
        """Note what a weight spent; one with much of the budget is fitted again where its curve was wrong."""
        for _ in range(_REFITS):
            better = self.pace.better_price(i, price, bits)
            if better is None:
                break
            price, bits = better, self._fitted(i, weight, better)
        self.pace.add(i, price, bits)

    def _with_costs(self, weight: Weight, measured: Measured | None, moments: GroupMoments | None) -> Weight:
        """The weight with its importance, and with the target that makes up for the errors before it."""
        if measured is None or (measured.energy is None and measured.importance is None):
            return replace(weight, factor=weight.factor * self._typical)
        importance = measured.importance
        if measured.energy is not None:
            inputs = None if moments is None else moments.importance()
            plain = Importance(measured.energy / weight.layout.matrix[1])  # no input came in this pass
            importance = plain if inputs is None else with_energy(measured.energy, inputs)
        assert importance is not None
        made = replace(weight, importance=partial(_same, importance))
        made = replace(made, known_damping=_without_factor(made.damping))
        if moments is None or weight.kept:
            return made
        matrix = weight.layout.split(weight.tensor())[0]
        target = weight.layout.join([moments.target(matrix.to(moments.device)).cpu()])
        return replace(made, load=partial(_same, target))

    @property
    def _typical(self) -> float:
        """What a measured cost is of the assumed one, for a typical weight."""
        ratios = [one.ratio for key in self._keys for one in (self.found.get(key) or {}).values() if one.ratio]
        return 2.0 ** float(np.median(ratios)) if ratios else 1.0

    @property
    def _keys(self) -> list[str]:
        return [OUTSIDE, *map(str, range(len(self.source.blocks)))]

    def _fitted(self, i: int, weight: Weight, price: float) -> float:
        """Fit a weight by the best spec and keep the result; its bits."""
        entry = weight.fit(price)
        if weight.choice is not None and not weight.reason:
            parts = zip(weight.matrices(price), entry.parts, strict=True)
            lost = sum(importance.distortion(target - part.dense()) for (target, importance), part in parts)
            best = best_spec(weight, price, lost + price * 8 * len(entry.blob))
            entry = entry if best == weight.spec else weight.with_spec(best).fit(price)
        original = self.work.weights[i]
        self.work.store.put(i, with_error(original.masked(original.load()), entry), price)
        return 8.0 * len(entry.blob)

    def _install(self, module: nn.Module, stretch: Stretch, names: Iterable[str]) -> None:
        held = {*dict(module.named_parameters(remove_duplicate=False)), *dict(module.named_buffers())}
        for name in (name for name in names if name in held):  # what only the checkpoint knows has no place
            i = self._position(stretch, name)
            weight = self.work.weights[i]
            parts = decode(self.work.store.blob(i), weight.layout, weight.name)
            installed(module, name, restored(parts, weight.layout))

    def _report(self, number: int) -> None:
        if self.work.options.report is not None:
            done, total = number + 1, len(self.source.blocks)
            self.work.options.report(Progress("fitting blocks", done, total, done, total))


def _without_factor(damping: Damping) -> Damping:
    """A damping that leaves the costs as they are: on few inputs all of them would rise, beyond what was measured."""
    return lambda k: (damping(k)[0], 1.0)


def _same(value: Any) -> Any:
    return value
