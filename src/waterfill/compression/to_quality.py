"""A budget in quality: the smallest file whose network, measured, has lost no more than was allowed."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from waterfill.compression.compress import compress
from waterfill.errors import BadInput, BudgetError
from waterfill.evaluation.quality import Drop
from waterfill.model.compressed import CompressedModel
from waterfill.network.forward import as_deployed, copy_of

Compressor = Callable[[float], CompressedModel]
"""Bits per weight -> the model compressed to them."""

_STEP = 1.6  # factor between bits per weight while a file that meets the drop, and one that does not, are looked for


@dataclass(frozen=True)
class Trial:
    """A file that was tried: bits per weight asked for, its bytes, the quality of its network, what was lost, and
    whether that is allowed. Bytes are None where no file can be so small; then nothing was measured."""

    bits: float
    size: int | None
    quality: float
    lost: float
    met: bool


@dataclass(frozen=True)
class Trace:
    """original: quality before compression. allowed: loss, in its unit. trials: in the order they were made."""

    original: float
    allowed: float
    trials: tuple[Trial, ...]

    def as_json(self) -> dict[str, Any]:
        """For JSON; numbers that are not finite are null."""
        rows = [{key: _plain(value) for key, value in vars(trial).items()} for trial in self.trials]
        return {"original": self.original, "allowed": self.allowed, "trials": rows}

    def text(self) -> str:
        """A line for every trial."""
        lines = [f"original {self.original:.6g}, may lose {self.allowed:.6g}"]
        for t in self.trials:
            size = "no file so small" if t.size is None else f"{t.size} bytes, {t.quality:.6g}, lost {t.lost:.6g}"
            lines.append(f"  {t.bits:.3f} bits per weight: {size}{', met' if t.met else ''}")
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def compress_to_quality(  # noqa: PLR0913 - the goal, what searches for it, and how far
    model: nn.Module,
    measure: Callable[[nn.Module], float],
    max_drop: "float | Drop",
    *,
    relative: bool = False,
    better: int = 1,
    bits: tuple[float, float] = (0.5, 8.0),
    start: float = 3.0,
    tolerance: float = 0.02,
    evaluations: int = 8,
    compressor: Compressor | None = None,
    **options: Any,
) -> tuple[CompressedModel, Trace]:
    """The smallest file whose network loses at most `max_drop`, and every file that was tried.

    measure: (module with the compressed weights in it, in evaluation mode) -> quality, on inputs that calibration has
    not seen. better: 1 if more of it is better, -1 if less (perplexity, divergence). max_drop: in the unit of the
    measure; with relative=True, or a `Drop` that says so, as a share of the original's value. bits: the range of bits
    per weight to search, from `start`. The search ends when bits are known to the relative `tolerance`, or after so
    many `evaluations` of compressed models, the original not counted. It takes quality to rise with bits; where chance
    makes it otherwise, the smallest file that was seen to meet the drop is returned all the same. compressor: (bits per
    weight) -> compressed model; by default `waterfill.compress` with the `options` (spec, importance ...). The model
    itself is not changed.
    Raises BudgetError if even the most bits lose more, BadInput for arguments without meaning or an original that
    measures NaN.
    """
    low, high = bits
    if not 0 < low <= high < math.inf or better not in (1, -1) or evaluations < 1 or not 0 < tolerance < 1:
        raise BadInput(f"bits={bits}, better={better}, evaluations={evaluations}, tolerance={tolerance}: see the docs")
    if compressor is not None and options:
        raise BadInput(f"{', '.join(options)}: options are for waterfill.compress; a compressor has its own")
    drop = max_drop if isinstance(max_drop, Drop) else Drop(max_drop, relative)
    work = copy_of(model)
    original = _measured(measure, work)
    if not math.isfinite(original):
        raise BadInput(f"the model measures {original} before it is compressed; look at the measure and its inputs")
    found = _Search(
        compressor or (lambda asked: compress(model, bits=asked, **options)),
        lambda compressed: _measured(measure, compressed.install(work)),
        (original, drop.allowed(original), better),
        (low, high),
        (tolerance, evaluations),
    )
    return found.run(min(max(start, low), high)), found.trace


def _measured(measure: Callable[[nn.Module], float], work: nn.Module) -> float:
    with as_deployed(work):
        return float(measure(work))


@dataclass
class _Search:
    """A bracket of bits per weight, from the most that failed to the fewest that met the goal, and its halving.

    goal: quality of the original, loss that is allowed, sign. range: bits. limits: tolerance, evaluations.
    """

    compressor: Compressor
    quality: Callable[[CompressedModel], float]
    goal: tuple[float, float, int]
    range: tuple[float, float]
    limits: tuple[float, int]
    trials: list[Trial] = field(default_factory=list)
    best: CompressedModel | None = None

    @property
    def trace(self) -> Trace:
        return Trace(self.goal[0], self.goal[1], tuple(self.trials))

    def run(self, start: float) -> CompressedModel:
        """Bracket from `start`, then halve. Raises BudgetError."""
        low, high = self.range
        failed, met = 0.0, math.inf
        at = start
        while len(self.trials) < self.limits[1]:
            if self._meets(at):
                met = at
            else:
                failed = at
            if failed >= high or met <= low or (failed > 0 and met <= failed * (1 + self.limits[0])):
                break
            last = len(self.trials) == self.limits[1] - 1
            at = self._next(failed, met, last)
        if self.best is None:
            raise BudgetError(self._never())
        return self.best

    def _next(self, failed: float, met: float, last: bool) -> float:
        low, high = self.range
        if met == math.inf:
            return high if last else min(high, failed * _STEP)
        return max(low, met / _STEP) if failed == 0 else math.sqrt(failed * met)

    def _meets(self, bits: float) -> bool:
        """Compress, measure, and remember the file if it is the smallest that meets the goal."""
        original, allowed, better = self.goal
        try:
            compressed = self.compressor(bits)
        except BudgetError:
            self.trials.append(Trial(bits, None, math.nan, math.nan, False))
            return False
        try:
            quality = self.quality(compressed)
        except BadInput:  # outputs that are NaN or infinite
            quality = math.nan
        lost = better * (original - quality)
        met = lost <= allowed + 1e-12 * abs(original)
        self.trials.append(Trial(bits, compressed.size, quality, lost, met))
        if met and (self.best is None or compressed.size < self.best.size):
            self.best = compressed
        return met

    def _never(self) -> str:
        measured = [trial for trial in self.trials if not math.isnan(trial.lost)]
        wanted = f"a loss of at most {self.goal[1]:.6g} from {self.goal[0]:.6g} was not met"
        if not measured:
            return f"{wanted}: no file of {self.range[0]:g} to {self.range[1]:g} bits per weight could be measured"
        least = min(measured, key=lambda trial: trial.lost)
        return (
            f"{wanted}: at {least.bits:.3g} bits per weight ({least.size} bytes) {least.lost:.6g} is lost; "
            "allow more, or give it more bits or a finer recipe"
        )
