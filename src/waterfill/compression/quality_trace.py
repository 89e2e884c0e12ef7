"""The trace of a search for a budget in quality: every file that was tried, and a report."""

import math
from dataclasses import dataclass, replace
from typing import Any

from waterfill.evaluation.paired import Difference

_UNSURE = 0.8  # probability; below, more inputs are advised


@dataclass(frozen=True)
class Trial:
    """A file that was tried.

    bits: per weight, requested. size: bytes of the file; None where none can be so small, and nothing was measured.
    quality: of its network. difference: from the original. smoothed: the loss after isotonic regression over the files,
    as fewer bits can lose less only by chance. met: whether the loss and the smoothed loss are both allowed.
    """

    bits: float
    size: int | None
    quality: float
    difference: Difference
    smoothed: float = math.nan
    met: bool = False

    @property
    def lost(self) -> float:
        """Quality of the original less that of this file's network; less is better."""
        return self.difference.lost

    def sure(self, allowed: float) -> float | None:
        """The probability that no more than `allowed` is lost; None where it is not known."""
        worst = max(self.lost, self.smoothed) if not math.isnan(self.smoothed) else self.lost
        return replace(self.difference, lost=worst).sure(allowed)


@dataclass(frozen=True)
class Trace:
    """The trials of `compress_to_quality`.

    original: quality before compression. allowed: the loss that is allowed, in its unit. trials: in order. points:
    whether quality is a share, shown in percentage points. chosen: the trial whose file is returned, if any.
    """

    original: float
    allowed: float
    trials: tuple[Trial, ...]
    points: bool = False
    chosen: Trial | None = None

    def as_json(self) -> dict[str, Any]:
        """The trace for JSON; numbers that are not finite are null."""
        rows = [self._row(trial) for trial in self.trials]
        return {
            "original": self.original,
            "allowed": self.allowed,
            "trials": rows,
            "chosen": None if self.chosen is None else self._row(self.chosen),
        }

    def _row(self, trial: Trial) -> dict[str, Any]:
        row = {
            "bits": trial.bits,
            "size": trial.size,
            "quality": trial.quality,
            "lost": trial.lost,
            "standard_error": trial.difference.error,
            "inputs": trial.difference.inputs,
            "sure": trial.sure(self.allowed),
            "met": trial.met,
        }
        return {key: _plain(value) for key, value in row.items()}

    def text(self) -> str:
        """A line for every trial, and the verdict on the file that was chosen."""
        lines = [f"original {self.original:.6g}, may lose {self.allowed:.6g}"]
        for t in self.trials:
            about = "" if math.isnan(t.difference.error) else f" ± {t.difference.error:.2g}"
            size = (
                "no file so small" if t.size is None else f"{t.size} bytes, {t.quality:.6g}, lost {t.lost:.6g}{about}"
            )
            lines.append(f"  {t.bits:.3f} bits per weight: {size}{', met' if t.met else ''}")
        return "\n".join(lines if self.chosen is None else [*lines, self.verdict(self.chosen)])

    def verdict(self, trial: Trial) -> str:
        """The loss of a file with its error, and the probability that it is allowed, in words."""
        unit = " points" if self.points else ""
        lost, error, allowed = (
            f"{(100 if self.points else 1) * value:.3g}" for value in (trial.lost, trial.difference.error, self.allowed)
        )
        sure = trial.sure(self.allowed)
        if sure is None:
            return f"drop {lost}{unit}; how sure that is, a measure that gives one number does not say"
        report = (
            f"drop {lost} ± {error}{unit} (paired, {trial.difference.inputs:,} inputs); "
            f"{percent(sure)} sure that at most {allowed}{unit} are lost"
        )
        return report if sure >= _UNSURE else f"{report}: more inputs, or a surer search, would leave less to chance"


def percent(p: float) -> str:
    """A probability for reading: 96 %, never 100 %."""
    return "over 99.9 %" if p > 0.999 else f"{100 * p:.3g} %" if p > 0.99 else f"{100 * p:.0f} %"


def smoothed(trials: list[Trial]) -> list[Trial]:
    """The trials with smoothed losses, which do not rise with bits: least squares (isotonic regression by pooling).

    Only trials whose standard error is known take part.
    """
    known = [trial for trial in trials if not math.isnan(trial.difference.error) and not math.isnan(trial.lost)]
    pools: list[tuple[float, list[Trial]]] = []  # of rising bits, their means falling
    for trial in sorted(known, key=lambda trial: trial.bits):
        pools.append((trial.lost, [trial]))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (_, left), (_, right) = pools[-2:]
            both = left + right
            pools[-2:] = [(sum(trial.lost for trial in both) / len(both), both)]
    means = {id(trial): mean for mean, pool in pools for trial in pool}
    return [replace(trial, smoothed=means.get(id(trial), math.nan)) for trial in trials]


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
