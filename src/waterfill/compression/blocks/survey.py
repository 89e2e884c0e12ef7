"""The first pass: what an error in each weight costs, and the curve of each, measured block by block on some inputs.

A pass forward keeps the hidden states between blocks; then random probes of the outputs go back through one block after
the other, each run again from its hidden state, as in checkpointed backpropagation (Chen et al., arXiv 1604.06174).
What is left of a weight are some numbers: its Gram matrix is measured anew, on all inputs, when it is fitted.
"""

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from waterfill.calibration.backward import Gathering, check_graph
from waterfill.calibration.cache import Measurement
from waterfill.calibration.moments import bytes_of
from waterfill.calibration.probes import Cost
from waterfill.calibration.recorder import MIXTURE, Selection
from waterfill.compression.allocation.curve import water_level
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.allocation.without_data import assumed
from waterfill.compression.blocks.measured import Measured, MeasuredStore, energy_of
from waterfill.compression.blocks.source import Source, Stretch
from waterfill.compression.options import Options
from waterfill.importance import UNTESTED, Importance
from waterfill.network.blocks.call import BlockCall
from waterfill.network.blocks.chain import Chain
from waterfill.network.blocks.hidden import HiddenStates
from waterfill.network.layout import MATRIX, VECTOR
from waterfill.network.running.batches import samples_in
from waterfill.network.running.forward import as_deployed
from waterfill.progress import Progress

OUTSIDE = "outside"
"""The stretch of what lies outside of the blocks."""
_BITS = 2.0  # an entry, at which measured and assumed costs are compared


@dataclass(eq=False)
class Survey:
    """The first pass over some batches.

    others: those that no probes go back through. bits: an entry, of the budget; price: or its price. found: where
    results are kept.
    """

    source: Source
    chain: Chain
    batches: Sequence[Any]
    states: HiddenStates
    found: MeasuredStore
    options: Options
    bits: float
    price: float | None = None
    others: Sequence[Any] = ()
    _rows: int = 0
    _unit: float = 1.0
    _done: list[int] = field(default_factory=list)

    def run(self) -> None:
        """Measure every stretch that is not measured yet."""
        if self.found.get(OUTSIDE) is not None:
            return
        with as_deployed(self.chain.model):
            self._forward()
            outside = self._gathering(self.source.stretch(None))
            outside[1].whole = False
            self._tail(*outside)
            for i in reversed(range(len(self.source.blocks))):
                self._block(i)
                gc.collect()  # weights hold themselves and their Gram matrices, and it counts objects, not bytes
            self._front(*outside)
            self._keep(OUTSIDE, *outside)
            self.states.drop("h")
            self.states.drop("g")

    @cached_property
    def _calls(self) -> list[list[BlockCall]]:
        return [self.chain.begin(batch)[1] for batch in self.batches]

    @property
    def _probes(self) -> int:
        """Of each batch: one where there are other batches, which tell more than other probes."""
        return 1 if self.others else self.options.steps.probes

    def _forward(self) -> None:
        """The hidden states between all blocks."""
        last = len(self.batches) - 1
        for j, batch in enumerate(self.batches):
            if f"h0-{j}" not in self.states:
                self.states.put(f"h0-{j}", self.chain.begin(batch)[0])
        for i in range(len(self.source.blocks)):
            if f"h{i + 1}-{last}" in self.states:
                continue
            block = self.source.original(i)
            for j in range(len(self.batches)):
                after = self.chain.run(block, self._calls[j][i], self.states.get(f"h{i}-{j}"))
                self.states.put(f"h{i + 1}-{j}", after)

    def _gathering(self, stretch: Stretch, seed: int = 0) -> tuple[Stretch, Gathering]:
        memory = self.options.memory
        full = {name: bytes_of(layout) <= memory or layout.role == VECTOR for name, layout in stretch.layouts.items()}
        selection = Selection(full, self._probes)
        return stretch, Gathering(stretch.module, stretch.weights, stretch.layouts, selection, seed)

    def _tail(self, stretch: Stretch, gathering: Gathering) -> None:
        """From the outputs back to the hidden state after the last block."""
        count, cost = len(self.source.blocks), Cost(self.options.steps.importance, self._probes)
        generator = torch.Generator("cpu").manual_seed(0)
        with gathering.differentiating() as parameters:
            for j, batch in enumerate(self.batches):
                hidden = self.states.get(f"h{count}-{j}").requires_grad_()
                with _from_the_last_block(gathering) as reached, gathering.tracer:
                    outputs = self.chain.end(batch, hidden, partial(reached, samples_in(batch)))
                check_graph(outputs)
                draw = cost.draws(outputs, batch, generator)
                self._back((gathering, parameters), hidden, (j, count), draw)
        self._rows, self._unit = cost.rows, cost.unit

    def _block(self, i: int) -> None:
        """Measure a block: from the gradients after it to those before it."""
        key = str(i)
        if self.found.get(key) is None:
            stretch, gathering = self._gathering(self.source.stretch(i), seed=i + 1)
            with gathering.differentiating() as parameters:
                for j in range(len(self.batches)):
                    hidden = self.states.get(f"h{i}-{j}").requires_grad_()
                    gathering.recorder.begin(len(hidden))
                    with gathering.tracer:
                        after = self.chain.run(stretch.module, self._calls[j][i], hidden)
                    known = iter([self.states.get(f"g{i + 1}-{p}-{j}") for p in range(self._probes)])
                    self._back((gathering, parameters), hidden, (j, i), _pairs(after, known))
            self._keep(key, stretch, gathering)
        self.states.drop(f"g{i + 1}-")
        self._report(i)

    def _front(self, stretch: Stretch, gathering: Gathering) -> None:
        """From the hidden state before the first block back to the weights before it."""
        with gathering.differentiating() as parameters:
            for j, batch in enumerate(self.batches):
                gathering.recorder.begin(samples_in(batch))
                with gathering.tracer:
                    first, _ = self.chain.begin(batch)
                if first.requires_grad:
                    known = iter([self.states.get(f"g0-{p}-{j}") for p in range(self._probes)])
                    self._back((gathering, parameters), None, (j, -1), _pairs(first, known))

        with torch.no_grad():
            self._count_rows(gathering)

    def _count_rows(self, gathering: Gathering) -> None:
        """How often the rows of tables are looked up, in the other batches too: most tokens are rare."""
        recorder = gathering.recorder
        terms = [term for uses in recorder.terms.values() for key, term in uses.items() if key[0] == MIXTURE]
        before = [(term, term.energy) for term in terms if term.energy is not None]
        for batch in self.others:
            recorder.begin(samples_in(batch))
            with gathering.tracer:
                self.chain.begin(batch)
        share = len(self.batches) / (len(self.batches) + len(self.others))
        for term, energy in before:
            if term.energy is not energy and term.energy is not None:
                term.energy, term.floor = share * term.energy, share * term.floor

    def _back(
        self,
        sums: tuple[Gathering, Mapping[str, Tensor]],
        hidden: Tensor | None,
        place: tuple[int, int],
        draw: Callable[[], tuple[Tensor, Tensor]],
    ) -> None:
        """Every probe back through one stretch; the gradients at its hidden state are kept."""
        (gathering, parameters), (j, at) = sums, place
        gathering.tracer.views.forget()
        needed = gathering.needed(parameters, j)
        ends = [] if hidden is None else [hidden]
        for probe in range(self._probes):
            what, gradient = draw()
            given = [*needed.values(), gathering.recorder.anchor, *ends]
            more = probe < self._probes - 1
            found = torch.autograd.grad(what, given, gradient.to(what), retain_graph=more, allow_unused=True)
            gathering.add(dict(zip(needed, found, strict=False)))
            if hidden is not None:
                passed = torch.zeros_like(hidden) if found[-1] is None else found[-1]
                self.states.put(f"g{at}-{probe}-{j}", passed)

    def _keep(self, key: str, stretch: Stretch, gathering: Gathering) -> None:
        """Measure the curves of a stretch and keep what the second pass needs."""
        chosen: dict[str, Weight] = {}
        others: dict[str, Measured] = {}
        for relative, measurement in gathering.measurements(self._rows, self._unit, exact=key != OUTSIDE):
            name = stretch.prefix + relative
            weight = self.source.task.weights[self.source.positions[name]]
            if weight.kept:
                continue
            chosen[weight.name] = replace(weight, importance=_reader(measurement, self._unit))
            others[weight.name] = Measured({}, about=measurement.about)
        measured = self._curves(chosen, others, again=key != OUTSIDE)
        self.found.put(key, measured)

    def _curves(
        self, weights: Mapping[str, Weight], remarks: Mapping[str, Measured], again: bool
    ) -> dict[str, Measured]:
        known = [weight for weight in weights.values() if weight.importance is not None]
        exponents = self._exponents(known)
        found = dict(remarks)
        for weight in known:
            assert weight.importance is not None
            importance = weight.importance()
            points = {k: weight.curve.at_grid(k) for k in exponents}
            anew = again and weight.layout.role == MATRIX and importance.gram is not None
            found[weight.name] = replace(
                remarks[weight.name],
                points=points,
                energy=energy_of(importance) if anew else None,
                importance=None if anew else importance,
                ratio=_ratio(weight, importance),
            )
        return found

    def _exponents(self, weights: Sequence[Weight]) -> list[int]:
        """The exponents of 4 around the price at which these weights spend what the budget has for an entry."""
        if self.price is not None:
            at = math.floor(math.log(self.price, 4))
            return [at, at + 1]
        levels = [level for w in weights if w.layout.role != VECTOR and (level := w.level(self.bits)) is not None]
        self._last = float(np.median(levels)) if levels else self._last
        first = round(self._last) - 1  # the two around it, and the next nearest
        return [first, first + 1, first + 2]

    _last: float = -8.0

    def _report(self, i: int) -> None:
        if self.options.report is not None:
            total = len(self.source.blocks)
            self.options.report(Progress("measuring", total - i, total, total - i, total))


def _pairs(output: Tensor, gradients: Iterator[Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (output, next(gradients))


def _reader(measurement: Measurement, unit: float) -> Callable[[], Importance] | None:
    """Reads an importance for curves: with a usual damping, which is cross-validated when the weight is fitted."""
    if measurement.importance is None:
        return None
    damping = measurement.importance.damping if measurement.importance.gram is None else UNTESTED
    importance = replace(measurement.importance, halves=None, damping=damping).scaled(1 / unit)
    return lambda: importance


def _ratio(weight: Weight, importance: Importance) -> float | None:
    """The logarithm to base 2 of the measured over the assumed cost of a weight."""
    target = weight.layout.split(weight.tensor())[0]
    if weight.layout.role == VECTOR or not bool(target.any()):
        return None
    usual = assumed(target, weight.layout, weight.lines).scaled(weight.factor)
    return water_level(target, importance, _BITS) - water_level(target, usual, _BITS)


@contextmanager
def _from_the_last_block(gathering: Gathering) -> Iterator[Callable[[int], None]]:
    """A block of code in which products are recorded only after the function that it gets is called with the number of
    samples: what runs before the last block is recorded on its own."""
    recorder = gathering.recorder
    selection = recorder.selection
    with ExitStack() as stack:
        stack.callback(setattr, recorder, "selection", selection)
        recorder.selection = Selection({}, selection.probes)

        def reached(samples: int) -> None:
            recorder.selection = selection
            recorder.begin(samples)

        yield reached
