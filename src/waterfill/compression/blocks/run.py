"""A network compressed block by block: measured in one pass, fitted in another."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from waterfill.compression.allocation.budget import Budget
from waterfill.compression.blocks.fitting import Fitting
from waterfill.compression.blocks.measured import Measured, MeasuredStore
from waterfill.compression.blocks.pace import Pace, RateCurve
from waterfill.compression.blocks.source import Source, source_in_memory
from waterfill.compression.blocks.survey import OUTSIDE, Survey
from waterfill.compression.options import Options
from waterfill.compression.steps.choice import with_choice
from waterfill.compression.store import KeepingStore, MemoryStore
from waterfill.compression.task import Compression, in_memory, model_of, with_remark
from waterfill.errors import BudgetError
from waterfill.model.compressed import CompressedModel
from waterfill.network.blocks.chain import Chain
from waterfill.network.blocks.find import Blocks
from waterfill.network.blocks.hidden import HiddenStates
from waterfill.network.layout import RAW, VECTOR
from waterfill.network.running.batches import spread
from waterfill.network.running.forward import as_deployed
from waterfill.network.running.inputs import Inputs
from waterfill.part import Spec
from waterfill.storage.work_directory import temporary_folder

_MOST_BATCHES = 512
_PROBED_ROWS = 1 << 13  # of hidden states, that probes go back through
_TRIES, _TIGHTER = 3, 0.99  # of the whole second pass, where its file is too large


@dataclass(frozen=True, eq=False)
class Work:
    """What a compression works on. batches: all of them. specs: of which each weight takes one. notes: of the file."""

    source: Source
    chain: Chain
    batches: Sequence[Any]
    specs: Sequence[Spec]
    budget: Budget
    options: Options
    notes: dict[str, Any]

    @property
    def allowed(self) -> int | None:
        """Bytes that the file may have; None where a price decides."""
        return self.source.task.allowed(self.budget)

    def measured(self, states: HiddenStates, found: MeasuredStore) -> dict[str, Measured]:
        """The first pass, as far as it is not done yet; what is known of each weight."""
        with as_deployed(self.chain.model):
            rows = max(1, self._rows())
        some = list(spread(self.batches, max(1, -(-_PROBED_ROWS // rows))))
        entries = sum(w.layout.numbers for w in self.source.task.weights if w.layout.role not in (RAW, VECTOR))
        bits = 8.0 * (self.allowed or 0) / max(1, entries)
        Survey(self.source, self.chain, some, states, found, self.options, bits, self.budget.price).run()
        keys = [OUTSIDE, *map(str, range(len(self.source.blocks)))]
        return {name: one for key in keys for name, one in (found.get(key) or {}).items()}

    def _rows(self) -> int:
        first, _ = self.chain.begin(self.batches[0])
        return first.numel() // max(1, first.shape[-1])

    def fitting(
        self, states: HiddenStates, found: MeasuredStore, measured: dict[str, Measured], store: KeepingStore, aim: float
    ) -> Fitting:
        """The second pass, to a file of `aim` bytes."""
        task = replace(self.source.task, notes=self.source.task.notes | self.notes | _remarks(measured))
        work = Compression(task, store, self.options)
        curves = {i: _curve(weight, measured.get(weight.name)) for i, weight in enumerate(task.weights)}
        allowed = None
        if self.allowed is not None:
            least = work.file_bytes([int(curve.bits(0.0) / 8) for curve in curves.values()])
            lengths = [int(self._share(i, curves, aim)) for i in curves]
            allowed = 8.0 * (aim - (work.file_bytes(lengths) - sum(lengths)))
            if allowed <= 0:
                raise BudgetError(f"a file of {self.allowed} bytes is asked for, and its table alone has {least}")
        pace = Pace(curves, allowed, self.budget.price)
        return Fitting(self.source, self.chain, self.batches, states, found, work, pace, self.specs)

    def _share(self, i: int, curves: dict[int, RateCurve], aim: float) -> float:
        """Bytes of a weight, about, by its share of the entries."""
        return aim * curves[i].entries / max(1, sum(curve.entries for curve in curves.values()))


def compress_by_blocks(
    model: nn.Module,
    inputs: Inputs,
    specs: Sequence[Spec],
    task: tuple[Budget, Options, dict[str, Any]],
    blocks: Blocks,
) -> CompressedModel:
    """A network in memory to a budget. task: the budget, the options, and the notes of the file.

    Raises BadInput where the network is no chain of these blocks, BudgetError.
    """
    budget, options, notes = task
    source = source_in_memory(model, blocks, specs[0])
    options = in_memory(source.task, options).options
    source = replace(source, task=replace(source.task, weights=with_choice(source.task.weights, specs)))
    chain = Chain(source.model, blocks, source.original, inputs.forward)
    with torch.no_grad(), as_deployed(source.model):
        chain.check(inputs.first)
    work = Work(source, chain, list(spread(inputs.batches, _MOST_BATCHES)), specs, budget, options, notes)
    with temporary_folder() as folder:
        states, found = HiddenStates(folder / "states", options.memory), MeasuredStore(None)
        measured = work.measured(states, found)
        return _within(work, states, found, measured)


def _within(work: Work, states: HiddenStates, found: MeasuredStore, measured: dict[str, Measured]) -> CompressedModel:
    size, aim = work.allowed, float(work.allowed or 0)
    for _ in range(_TRIES):
        fitting = work.fitting(states, found, measured, MemoryStore(), aim)
        fitting.run()
        made = model_of(fitting.work)  # type: ignore[arg-type]  # its store is in memory
        if size is None or fitting.settle(size):
            made = model_of(fitting.work)  # type: ignore[arg-type]
            return with_remark(made, size)
        aim = _TIGHTER * aim * size / made.size
    raise BudgetError(
        f"a file of {size} bytes is asked for, and block by block the smallest that was made has {made.size}; allow "
        "more, or use a recipe that can spend less"
    )


def _curve(weight: Any, measured: Measured | None) -> RateCurve:
    """The curve of a weight: measured, or, where nothing is known of its cost, at the prices of its own sample."""
    entries = weight.layout.numbers
    if measured is not None and measured.points:
        return RateCurve(measured.points, entries)
    return RateCurve({k: weight.curve.at_grid(k) for k in (-10, -5)}, 0 if weight.reason else entries)


def _remarks(measured: dict[str, Measured]) -> dict[str, Any]:
    """The notes on what was measured: how many outputs, what no input reached, and warnings."""
    about = {name: one.about for name, one in measured.items()}
    missing = {name: text for name, own in about.items() if (text := own.get("reason"))}
    warnings = {name: f"{text}: what its errors cost is assumed" for name, text in missing.items()}
    for name, own in about.items():
        texts = [*filter(None, [warnings.get(name), own.get("note"), own.get("unmet")])]
        warnings |= {name: "; ".join(texts)} if texts else {}
    samples = max((int(own.get("samples", 0)) for own in about.values()), default=0)
    return {"samples": samples, "unreached": sorted(missing)} | ({"warnings": warnings} if warnings else {})


def work_folder(options: Options) -> Path | None:
    """The folder in which a compression can be gone on with; None for none."""
    return options.work
