"""A budget in quality: the smallest file whose network, as measured, loses no more than is allowed."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

from torch import nn

from waterfill.compression.compress import compress
from waterfill.compression.quality_trace import Trace, Trial, smoothed
from waterfill.errors import BadInput, BudgetError
from waterfill.evaluation.paired import Difference, Scores, difference
from waterfill.evaluation.quality import Drop, Measure
from waterfill.model.compressed import CompressedModel
from waterfill.network.running.forward import as_deployed, copy_of
from waterfill.network.running.wrapped import unwrapped

Compressor = Callable[[float], CompressedModel]
"""Bits per weight -> the model compressed to them."""

_STEP = 1.6  # factor between bits per weight until one file meets the drop and another does not
_CLEAR = 2.0  # standard errors beyond the allowed loss above which a trial clearly fails


@dataclass(frozen=True)
class Search:
    """The limits of a search for the smallest file.

    Args:
        bits: range of bits per weight.
        start: bits per weight of the first file.
        tolerance: relative, to which bits per weight are found.
        evaluations: of compressed models, at most.
        sure: probability that the chosen file loses no more than is allowed, where the measure gives scores; 0.5 takes
            what was measured as it is.

    Raises:
        BadInput: values outside their ranges.
    """

    bits: tuple[float, float] = (0.1, 8.0)
    start: float = 3.0
    tolerance: float = 0.02
    evaluations: int = 10
    sure: float = 0.5

    def __post_init__(self) -> None:
        low, high = self.bits
        fine = 0 < low <= high < math.inf and self.evaluations >= 1 and 0 < self.tolerance < 1 and 0.5 <= self.sure < 1
        if not fine:
            raise BadInput(f"{self!r}: give bits from low to high, an evaluation or more, and be half sure or more")


def compress_to_quality(
    model: nn.Module,
    measure: "Measure | Callable[[nn.Module], float]",
    drop: "Drop | float",
    *,
    compressor: Compressor | None = None,
    search: Search = Search(),
) -> tuple[CompressedModel, Trace]:
    """Find the smallest file whose network loses at most `drop` of its quality.

    Quality rises with bits. Where a measure gives scores, the loss has a standard error, paired over the same inputs:
    the search goes on below a file that loses too much by less than two of them, and where fewer bits measured a
    smaller loss than more bits, neighbors share their mean (isotonic regression), so that no file is taken by chance.
    With a measure of single numbers each file is taken as measured.

    Args:
        model: the original; not changed.
        measure: the quality of a module, called in evaluation mode with the compressed weights in it, on inputs that
            were not used to calibrate. A plain function (module) -> float counts as more is better.
        drop: the loss that is allowed, in the unit of the measure; a `Drop` may be relative to the original's value.
        compressor: (bits per weight) -> compressed model; None for `waterfill.compress` without inputs. See
            `waterfill.compression.post_training.calibrated` for one with inputs.
        search: the range of bits, and how many files to try.

    Returns:
        The compressed model of the smallest file that meets the drop, and the trace of all that were tried.

    Raises:
        BudgetError: even the most bits lose more.
        BadInput: arguments without meaning, or an original that measures NaN or no better than a constant answer.

    Example:
        >>> small, trace = waterfill.compress_to_quality(model, accuracy, drop=0.005)
        >>> print(trace.text())
    """
    measure = measure if isinstance(measure, Measure) else Measure(measure)
    drop = drop if isinstance(drop, Drop) else Drop(drop)
    model = unwrapped(model)
    work = copy_of(model)
    original = _measured(measure, work)
    _check_original(original, measure)
    allowed = drop.allowed(_value(original))
    under_way = _Trials(
        compressor or (lambda bits: compress(model, bits=bits)),
        lambda compressed: _measured(measure, compressed.install(work)),
        (original, allowed, measure),
        search,
    )
    return under_way.run()


def _measured(measure: Measure, work: nn.Module) -> "float | Scores":
    with as_deployed(work):
        return measure.scores(work)


def _value(quality: "float | Scores") -> float:
    return quality.value if isinstance(quality, Scores) else quality


def _check_original(original: "float | Scores", measure: Measure) -> None:
    value = _value(original)
    if not math.isfinite(value):
        raise BadInput(f"the model measures {value} before it is compressed; look at the measure and its inputs")
    if isinstance(original, Scores) and not original.beats_chance(measure.better):
        raise BadInput(
            f"the model measures {value:.4g} before it is compressed, and what always gives the same answer "
            f"{original.chance:.4g}: any file would do as well. Are inputs and targets as the model was trained on, "
            "its weights loaded, and enough of them?"
        )


@dataclass
class _Trials:
    """The trials of a search so far, and the bits per weight to try next.

    goal: the original's quality or scores, the loss that is allowed, the measure. models: by bits, of the trials that
    may still be chosen.
    """

    compressor: Compressor
    quality: "Callable[[CompressedModel], float | Scores]"
    goal: "tuple[float | Scores, float, Measure]"
    search: Search
    trials: list[Trial] = field(default_factory=list)
    models: dict[float, CompressedModel] = field(default_factory=dict)

    def run(self) -> tuple[CompressedModel, Trace]:
        """Try files until the bits are known to the tolerance. Raises BudgetError."""
        low, high = self.search.bits
        at: float | None = min(max(self.search.start, low), high)
        while at is not None:
            self._try(at)
            at = self._next() if len(self.trials) < self.search.evaluations else None
        met = [trial for trial in self.trials if trial.met]
        original, allowed, measure = self.goal
        if not met:
            raise BudgetError(self._never())
        chosen = min(met, key=lambda trial: trial.size or 0)
        trace = Trace(_value(original), allowed, tuple(self.trials), measure.points, chosen)
        return self.models[chosen.bits], trace

    def _next(self) -> float | None:
        """The bits to try next; None where nothing is left to try."""
        low, high = self.search.bits
        tried = sorted(trial.bits for trial in self.trials)
        met = min((trial.bits for trial in self.trials if trial.met), default=None)
        if met is None:
            last = len(self.trials) == self.search.evaluations - 1
            return None if tried[-1] >= high else high if last else min(high, tried[-1] * _STEP)
        failed = max((t.bits for t in self.trials if t.bits < met and self._clearly_fails(t)), default=None)
        if failed is None and tried[0] > low:
            return max(low, tried[0] / _STEP)
        if failed is None:  # chance decides all the way down
            failed = max((trial.bits for trial in self.trials if trial.bits < met), default=met)
        between = [bits for bits in tried if failed <= bits <= met]
        left, right = max(pairwise(between), key=lambda pair: pair[1] / pair[0], default=(met, met))
        return math.sqrt(left * right) if right > left * (1 + self.search.tolerance) else None

    def _try(self, bits: float) -> None:
        """Compress and measure one file, then decide again for every trial whether it meets the goal."""
        original, _, measure = self.goal
        try:
            compressed = self.compressor(bits)
        except BudgetError:
            self.trials.append(Trial(bits, None, math.nan, Difference(math.nan)))
            return
        try:
            quality = self.quality(compressed)
        except BadInput:  # outputs that are NaN or infinite
            quality = math.nan
        if isinstance(quality, Scores) and isinstance(original, Scores):
            lost = difference(original, quality, measure.better)
        else:
            lost = Difference(measure.better * (_value(original) - _value(quality)))
        self.trials.append(Trial(bits, compressed.size, _value(quality), lost))
        self.models[bits] = compressed
        self.trials = [replace(trial, met=self._meets(trial)) for trial in smoothed(self.trials)]
        for trial in self.trials:
            if self._clearly_fails(trial):
                self.models.pop(trial.bits, None)

    def _meets(self, trial: Trial) -> bool:
        sure = trial.sure(self._most)
        return trial.lost <= self._most and (sure is None or sure >= self.search.sure)

    @property
    def _most(self) -> float:
        """The loss that is allowed, with a margin for rounding."""
        return self.goal[1] + 1e-12 * abs(_value(self.goal[0]))

    def _clearly_fails(self, trial: Trial) -> bool:
        """Whether a trial loses too much, by more than chance explains as far as its error is known."""
        margin = 0.0 if math.isnan(trial.difference.error) else _CLEAR * trial.difference.error
        return not trial.met and not trial.lost - self.goal[1] <= margin

    def _never(self) -> str:
        original, allowed, measure = self.goal
        measured = [trial for trial in self.trials if not math.isnan(trial.lost)]
        unmet = f"a loss of at most {allowed:.6g} from {_value(original):.6g} was not met"
        low, high = self.search.bits
        if not measured:
            return f"{unmet}: no file of {low:g} to {high:g} bits per weight could be measured"
        least = min(measured, key=lambda trial: trial.lost)
        report = (
            f"{unmet}: at {least.bits:.3g} bits per weight ({least.size} bytes) {least.lost:.6g} is lost; "
            "allow more, or give it more bits or a finer recipe"
        )
        if least.lost > self._most:
            return report
        trace = Trace(_value(original), allowed, tuple(self.trials), measure.points)
        return f"{unmet} with the certainty asked for: {trace.verdict(least)}"
