"""Fits weights again in the order of execution, each to a target that compensates for the errors of those before it.

The first fit gives the bits of every weight at the price; this one keeps to the same budget, weight by weight.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from torch import Tensor, nn

from waterfill.compression.allocation.to_size.search import Bracket
from waterfill.compression.allocation.to_size.spend import Ledger
from waterfill.compression.steps.compensate import Compensation
from waterfill.compression.store import MemoryStore
from waterfill.compression.task import Compression, model_of
from waterfill.model.entry import Entry
from waterfill.network.running.forward import copy_of
from waterfill.network.running.inputs import Inputs
from waterfill.progress import Progress

_SHARE_REFITTED = 0.25  # of all bits: the weights that run last, which may be fitted again to meet the budget


def refit_in_order(
    work: Compression[MemoryStore], ledger: Ledger, model: nn.Module, inputs: Inputs, size: int | None
) -> None:
    """Fit the weights of `work` again, in place; its file then has about `size` bytes, if given.

    It has a little more only where the new weights cannot be as small as those before.

    ledger: prices and bits of the first fit. model: the original that `work` is made of; it is not changed.
    """
    positions = {weight.name: i for i, weight in enumerate(work.weights)}
    compressed = model_of(work).install(copy_of(model))
    real = (weight for weight in work.weights if not weight.reason and not weight.layout.dtype.is_complex)
    layouts = {weight.name: weight.layout for weight in real}
    drift = Compensation(model, compressed, inputs.batches, layouts, inputs.forward, work.options.memory)
    uses = drift.order()
    order = [positions[name] for name in uses]
    pace = _BudgetController(work, ledger, None if size is None else ledger.total, order)
    state, originals = compressed.state_dict(), list(work.weights)
    report = _reporter(work, order)
    for stage in _stages(order, ledger, work.options.steps.stages):
        names = {work.weights[i].name: uses[work.weights[i].name] for i in stage}
        targets = drift.targets(names)
        for i in stage:
            original = work.weights[i]
            if original.name in targets:
                work.weights[i] = original.with_values(partial(_same, targets[original.name].cpu()))
            price = pace.price(i)
            ledger.prices[i], ledger.bits[i] = price, work.fit(i, price)
            state[original.name].copy_(work.store.entries[i].tensor())
            report(i)
    if size is not None:
        work.run.fill_up(ledger, pace.bracket, size, _late(order, ledger))
    work.weights[:] = originals  # the targets were as large as the network
    for i in order:
        original_values = work.weights[i].masked(model.state_dict()[work.weights[i].name].detach().cpu())
        work.store.entries[i] = with_error(original_values, work.store.entries[i])


def _reporter(work: Compression[MemoryStore], order: Sequence[int]) -> Callable[[int], None]:
    """A function that reports the progress after each weight."""
    report, sizes = work.options.report, {i: work.weights[i].layout.numbers for i in order}
    done: list[int] = []

    def finished(i: int) -> None:
        done.append(i)
        if report is not None:
            entries = sum(sizes[j] for j in done)
            report(Progress("refitting", len(done), len(order), entries, sum(sizes.values())))

    return finished


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _stages(order: Sequence[int], ledger: Ledger, count: int) -> Iterator[list[int]]:
    """The weights in order, in about `count` groups of equal bits; with a few large weights there are fewer."""
    share = sum(ledger.bits[i] for i in order) / max(1, count)
    stage: list[int] = []
    for i in order:
        stage.append(i)
        if len(order) <= count or sum(ledger.bits[j] for j in stage) >= share:
            yield stage
            stage = []
    if stage:
        yield stage


def _late(order: Sequence[int], ledger: Ledger) -> list[int]:
    """The weights that run last and hold a quarter of the bits, the largest first."""
    total, late = sum(ledger.bits[i] for i in order), list[int]()
    for i in reversed(order):
        late.append(i)
        if sum(ledger.bits[j] for j in late) >= _SHARE_REFITTED * total:
            break
    return sorted(late, key=lambda i: -ledger.bits[i])


class _BudgetController:
    """The price of each weight in turn, such that all of them together spend the bits of the first fit."""

    def __init__(
        self, work: Compression[MemoryStore], ledger: Ledger, allowed: float | None, order: Sequence[int]
    ) -> None:
        self._ledger = ledger
        self._allowed = allowed
        self._left = list(order)
        self._first = dict(ledger.bits)
        k = int(np.floor(np.log(np.median(list(ledger.prices.values()))) / np.log(4)))
        count = range(len(work.weights))
        points = [(work.weights[i].curve.at_grid(k).bits, work.weights[i].curve.at_grid(k + 1).bits) for i in count]
        low, high = np.array(points, dtype=np.float64).T
        self.bracket = Bracket(k, low, high)

    def price(self, i: int) -> float:
        """The price for weight i, the next in order."""
        price = self._ledger.prices[i]
        if self._allowed is None:
            return price
        ahead = sum(self._first[j] for j in self._left)
        slope = sum(max(0.0, self.bracket.low[j] - self.bracket.high[j]) for j in self._left)
        over = self._ledger.total - self._allowed  # bits that the weights before spent beyond their share
        self._left.remove(i)
        reach = np.clip(over / max(slope, 1.0), -0.25, 0.25) if ahead else 0.0
        return float(price * 4.0**reach)


def with_error(original: Tensor, entry: Entry) -> Entry:
    """The entry with its error measured from the original tensor."""
    error = (entry.tensor().double() - original.double()).norm()
    norm = original.double().norm()
    return replace(entry, error=float(error / norm) if float(norm) > 0 else 0.0)
