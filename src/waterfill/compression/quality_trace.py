"""What a search for a budget in quality has tried, and what it says of it."""

import math
from dataclasses import dataclass, replace
from typing import Any

from waterfill.evaluation.paired import Difference

_UNSURE = 0.8  # below, more inputs are advised


@dataclass(frozen=True)
class Trial:
    """A file that was tried: bits per weight asked for, its bytes, the quality of its network, what was lost.

    lost: as measured. smoothed: as measured here and, where more bits lost more, which only chance can do, in the
    neighbors too. met: whether both are allowed. Bytes are None where no file can be so small; then nothing was
    measured.
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
        """The chance that no more than is allowed is lost; None where it is not known."""
        worst = max(self.lost, self.smoothed) if not math.isnan(self.smoothed) else self.lost
        return replace(self.difference, lost=worst).sure(allowed)


@dataclass(frozen=True)
class Trace:
    """original: quality before compression. allowed: loss, in its unit. trials: in the order they were made.

    points: whether quality is a share, shown in percentage points. chosen: the trial whose file is returned, if any.
    """

    original: float
    allowed: float
    trials: tuple[Trial, ...]
    points: bool = False
    chosen: Trial | None = None

    def as_json(self) -> dict[str, Any]:
        """For JSON; numbers that are not finite are null."""
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
        """A line for every trial, and what is known of the file that was chosen."""
        lines = [f"original {self.original:.6g}, may lose {self.allowed:.6g}"]
        for t in self.trials:
            about = "" if math.isnan(t.difference.error) else f" ± {t.difference.error:.2g}"
            size = (
                "no file so small" if t.size is None else f"{t.size} bytes, {t.quality:.6g}, lost {t.lost:.6g}{about}"
            )
            lines.append(f"  {t.bits:.3f} bits per weight: {size}{', met' if t.met else ''}")
        return "\n".join(lines if self.chosen is None else [*lines, self.verdict(self.chosen)])

    def verdict(self, trial: Trial) -> str:
        """How much a file loses, and how sure it is that this is no more than is allowed."""
        unit = " points" if self.points else ""
        lost, error, allowed = (
            f"{(100 if self.points else 1) * value:.3g}" for value in (trial.lost, trial.difference.error, self.allowed)
        )
        sure = trial.sure(self.allowed)
        if sure is None:
            return f"drop {lost}{unit}; how sure that is, a measure that gives one number does not say"
        said = (
            f"drop {lost} ± {error}{unit} (paired, {trial.difference.inputs:,} inputs); "
            f"{percent(sure)} sure that at most {allowed}{unit} are lost"
        )
        return said if sure >= _UNSURE else f"{said}: more inputs, or a surer search, would leave less to chance"


def percent(chance: float) -> str:
    """A chance for reading: 96 %, never 100 %."""
    return "over 99.9 %" if chance > 0.999 else f"{100 * chance:.3g} %" if chance > 0.99 else f"{100 * chance:.0f} %"


def smoothed(trials: list[Trial]) -> list[Trial]:
    """The trials with losses that fall as bits grow, by least squares (isotonic regression, pooling neighbors).

    Only trials whose error is known take part: where a loss is a number alone, nothing says that it is chance.
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
