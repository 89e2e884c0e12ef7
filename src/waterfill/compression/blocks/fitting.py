"""The second pass: fits the weights of one block after the other, to the inputs that the compressed blocks before give.

Two streams of hidden states go through the network: the original's, whose inputs are what the weights should answer to,
and the compressed one's. The errors of the blocks before are compensated for as in GPTAQ (arXiv 2504.02692).
"""

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from waterfill.compression.allocation.to_size.spend import FILL, Ledger, refit_to_budget
from waterfill.compression.allocation.weight import Damping, Weight
from waterfill.compression.blocks.inputs.moments import GroupMoments, Moments, half_of, without_inputs
from waterfill.compression.blocks.inputs.recording import recorded, stages_of
from waterfill.compression.blocks.inputs.streams import OriginalInputs, Streams, inputs_by_name, moments_of
from waterfill.compression.blocks.log import Log
from waterfill.compression.blocks.measured import Measured, MeasuredStore
from waterfill.compression.blocks.norms import Ending, corrected
from waterfill.compression.blocks.pace import Pace
from waterfill.compression.blocks.source import Source, Stretch, installed, working_copy
from waterfill.compression.blocks.survey import OUTSIDE
from waterfill.compression.steps.choice import best_spec
from waterfill.compression.steps.sequential import with_error
from waterfill.compression.store import KeepingStore
from waterfill.compression.task import Compression
from waterfill.model.entry import decode, restored
from waterfill.network.blocks.call import BlockCall
from waterfill.network.blocks.chain import Chain
from waterfill.network.blocks.hidden import HiddenStates
from waterfill.network.layout import VECTOR
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
        self.late = {}
        gc.collect()  # weights hold themselves and their Gram matrices, and it counts objects, not bytes
        stretch = self.source.stretch(number)
        made = working_copy(stretch.module)
        streams = Streams(self.chain, self.states, number, calls)
        inputs = OriginalInputs(stretch, streams, self.work.options.memory)
        first = self._rest(number, stretch)
        self._fit_all(str(number), stretch, first, {})
        self._install(made, stretch, first)
        staged = {name for stage in inputs.stages for name in stage.uses} | set(first)
        unused = [name for name in stretch.layouts if name not in staged]
        self._fit_all(str(number), stretch, unused, {})
        self._install(made, stretch, unused)
        for stage in inputs.stages:
            moments = moments_of(stage, stretch, made, inputs, streams)
            self._fit_all(str(number), stretch, list(stage.uses), moments)
            self._install(made, stretch, list(stage.uses))
        for j in range(len(self.batches)):
            if not inputs.kept:
                streams.advance("x", j, stretch.module)
            if j not in streams.closed or inputs.closing is None:
                streams.advance("y", j, made)
            else:
                before, after = (block.get_parameter(inputs.closing) for block in (stretch.module, made))
                streams.change(j, (after - before).detach())
        if number + 1 < len(self.source.blocks):  # the last block's weights are needed once more, to meet the size
            self.log.commit(number + 1, self.pace, self.work.store)
            streams.drop()
        self._report(number)

    def _end(self, made: Chain) -> None:
        """Fit what runs after the blocks."""
        stretch, count = self.source.stretch(None), len(self.source.blocks)

        def run(chain: Chain, key: str, j: int, reached: Callable[[], None] = lambda: None) -> Tensor:
            return chain.end(self.batches[j], self.states.get(f"{key}{count}-{j}"), reached)

        streams = {"x": partial(run, self.chain, "x"), "y": partial(run, made, "y")}
        self._correct_norms(stretch, Ending(self.chain.model, streams["x"]), Ending(made.model, streams["y"]))
        left = [name for name in stretch.layouts if self._position(stretch, name) not in self.pace.spent]
        if not left:
            return
        layouts = {name: stretch.layouts[name] for name in left}
        first = recorded(stretch.module, layouts, partial(streams["x"], 0))
        for stage in stages_of(*first, layouts):
            groups = {name: GroupMoments() for name in stage.uses}
            for j in range(len(self.batches)):
                before, after = (
                    inputs_by_name(recorded(module, layouts, partial(streams[key], j), stage.uses)[0], stage.uses)
                    for key, module in (("x", self.chain.model), ("y", made.model))
                )
                for name in after:
                    for old, new in zip(before.get(name, ()), after[name], strict=False):
                        groups[name].add((old.x, new.x), half_of(j, len(self.batches)))
            self._fit_all(OUTSIDE, stretch, list(stage.uses), groups)
            self._install(made.model, stretch, list(stage.uses))
        unused = [name for name in left if self._position(stretch, name) not in self.pace.spent]
        self._fit_all(OUTSIDE, stretch, unused, {})

    def _correct_norms(self, stretch: Stretch, original: Ending, made: Ending) -> None:
        """Fit the norms after the last block again, to values that make up for some of what is lost before them."""
        measured = self.found.get(OUTSIDE) or {}
        vectors = [name for name, layout in stretch.layouts.items() if layout.role == VECTOR]
        for name in vectors:  # the same for one that goes on after a crash
            installed(made.model, name, stretch.weights[name].detach())
        found = corrected(original, made, len(self.batches))
        for name, value in found.items():
            i = self.source.positions.get(stretch.prefix + name)
            weight = None if i is None else self.work.weights[i]
            if i is None or weight is None or weight.kept or i not in self.pace.spent or weight.layout.role != VECTOR:
                continue
            one = self._with_costs(weight, measured.get(weight.name), None)
            self.late[i] = one.with_values(partial(_same, value))
            self.pace.spent[i] = self._fitted(i, self.late[i], self.work.store.price(i))
        self._install(made.model, stretch, vectors)

    def _position(self, stretch: Stretch, name: str) -> int:
        return self.source.positions[stretch.prefix + name]

    def _fit_all(self, key: str, stretch: Stretch, names: Iterable[str], moments: Mapping[str, Moments]) -> None:
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

    def _with_costs(self, weight: Weight, measured: Measured | None, moments: Moments | None) -> Weight:
        """The weight with its importance, and with the target that makes up for the errors before it."""
        if measured is None or (measured.energy is None and measured.importance is None):
            return replace(weight, factor=weight.factor * self._typical)
        made = without_inputs(weight, measured) if moments is None else moments.costed(weight, measured)
        made = replace(made, known_damping=_without_factor(made.damping))
        return made if moments is None else moments.aimed(made)

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
