"""A network compressed block by block: measured in one pass, fitted in another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from waterfill.compression.allocation.budget import Budget
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.blocks.fitting import Fitting
from waterfill.compression.blocks.log import Log
from waterfill.compression.blocks.measured import Measured, MeasuredStore
from waterfill.compression.blocks.pace import Pace, RateCurve
from waterfill.compression.blocks.source import Source
from waterfill.compression.blocks.survey import OUTSIDE, Survey
from waterfill.compression.options import Options
from waterfill.compression.store import KeepingStore, MemoryStore
from waterfill.compression.task import Compression
from waterfill.errors import BudgetError
from waterfill.network.blocks.chain import Chain
from waterfill.network.blocks.hidden import HiddenStates
from waterfill.network.layout import RAW, VECTOR
from waterfill.network.running.batches import spread
from waterfill.network.running.forward import as_deployed

MOST_BATCHES = 512
"""Batches that are used at most."""
_PROBED_ROWS = 1 << 12  # of hidden states, that probes go back through
_TRIES, _TIGHTER = 3, 0.99  # of the whole second pass, where its file is too large
_ASSUMED = (-10, -5)  # exponents of 4 at which the curves of weights are measured that no input reaches


@dataclass(frozen=True, eq=False)
class Room:
    """Where results and hidden states are kept. folder: for what a later run goes on with; None for none."""

    states: HiddenStates
    found: MeasuredStore
    store: KeepingStore
    folder: Path | None = None


@dataclass(frozen=True, eq=False)
class Blockwise:
    """A compression block by block. batches: all of them. notes: of the file."""

    source: Source
    chain: Chain
    batches: Sequence[Any]
    budget: Budget
    options: Options
    notes: Mapping[str, Any]

    @property
    def allowed(self) -> int | None:
        """Bytes that the file may have; None where a price decides."""
        return self.source.task.allowed(self.budget)

    def run(self, room: Room) -> Compression[KeepingStore]:
        """Measure and fit, from where an earlier run in the same room was. Raises BudgetError."""
        measured = self._measured(room)
        size = self.allowed
        log = Log.open(room.folder, float(size or 0))
        used = 0
        for _ in range(_TRIES):
            fitting = self._fitting(room, measured, log)
            fitting.run()
            if size is None or fitting.settle(size):
                return fitting.work
            used = fitting.file_bytes
            log.begin_again(_TIGHTER * log.aim * size / used)
        raise BudgetError(
            f"a file of {size} bytes is asked for, and block by block the smallest that was made has {used}; allow "
            "more, or use a recipe that can spend less"
        )

    def _measured(self, room: Room) -> dict[str, Measured]:
        """What is known of each weight after the first pass, which is run as far as it was not yet."""
        with as_deployed(self.chain.model):
            first, _ = self.chain.begin(self.batches[0])
        rows = max(1, first.numel() // max(1, first.shape[-1]))
        some = list(spread(self.batches, max(1, -(-_PROBED_ROWS // rows))))
        others = [batch for batch in self.batches if all(batch is not one for one in some)]
        entries = sum(w.layout.numbers for w in self.source.task.weights if w.layout.role not in (RAW, VECTOR))
        bits = 8.0 * (self.allowed or 0) / max(1, entries)
        how = self.options, bits, self.budget.price, others
        Survey(self.source, self.chain, some, room.states, room.found, *how).run()
        keys = [OUTSIDE, *map(str, range(len(self.source.blocks)))]
        return {name: one for key in keys for name, one in (room.found.get(key) or {}).items()}

    def _fitting(self, room: Room, measured: Mapping[str, Measured], log: Log) -> Fitting:
        """The second pass, to a file of `log.aim` bytes."""
        notes = self.source.task.notes | dict(self.notes) | self._remarks(measured)
        task = replace(self.source.task, notes=notes)
        work, blank = Compression(task, room.store, self.options), Compression(task, MemoryStore(), self.options)
        curves = {i: _curve(weight, measured.get(weight.name)) for i, weight in enumerate(work.weights)}
        allowed = None
        if self.allowed is not None:
            entries = sum(curve.entries for curve in curves.values())
            lengths = [int(log.aim * curve.entries / max(1, entries)) for curve in curves.values()]
            overhead = blank.file_bytes(lengths) - sum(lengths)  # whatever an earlier run has left in the room
            allowed = 8.0 * (log.aim - overhead)
            if allowed <= 0:
                raise BudgetError(f"a file of {self.allowed} bytes is asked for, and its table alone has {overhead}")
        pace = Pace(curves, allowed, self.budget.price)
        source, chain = self.source, self.chain
        return Fitting(source, chain, self.batches, room.states, room.found, work, pace, log)

    def _remarks(self, measured: Mapping[str, Measured]) -> dict[str, Any]:
        """The notes on what was measured: how many outputs, what no input reached, and warnings."""
        about = {name: one.about for name, one in measured.items()}
        missing = {name: text for name, own in about.items() if (text := own.get("reason"))}
        warnings = {name: f"{text}: what its errors cost is assumed" for name, text in missing.items()}
        for name, own in about.items():
            texts = [*filter(None, [warnings.get(name), own.get("note"), own.get("unmet")])]
            warnings |= {name: "; ".join(texts)} if texts else {}
        samples = max((int(own.get("samples", 0)) for own in about.values()), default=0)
        vectors = {weight.name for weight in self.source.task.weights if weight.layout.role == VECTOR}
        notes = {"samples": samples, "unreached": sorted(set(missing) - vectors)}
        return notes | ({"warnings": warnings} if warnings else {})


def _curve(weight: Weight, measured: Measured | None) -> RateCurve:
    """The curve of a weight: as measured, or, where nothing is known of what its errors cost, on its own sample."""
    if measured is not None and measured.points:
        return RateCurve(measured.points, weight.layout.numbers)
    points = {k: weight.curve.at_grid(k) for k in _ASSUMED}
    return RateCurve(points, 0 if weight.reason else weight.layout.numbers)
