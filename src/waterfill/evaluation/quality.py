"""Measures of quality, and how much of it may be lost."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.evaluation.evaluate import Evaluation, evaluate
from waterfill.evaluation.paired import Scores
from waterfill.network.running.forward import Forward, copy_of

METRICS = {"accuracy": 1, "top5": 1, "agreement": 1, "perplexity": -1, "nats": -1, "divergence": -1}
"""The metrics of `measure_of`, and whether more is better (1) or less (-1)."""
_AGAINST = ("agreement", "divergence")
_SHARES = ("accuracy", "top5", "agreement")


@dataclass(frozen=True)
class Drop:
    """The loss of quality that is allowed: in the unit of the measure, or as a share of the original's value."""

    amount: float
    relative: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.amount < math.inf:
            raise BadInput(f"a drop of {self.amount} makes no sense; give 0 or more")

    def allowed(self, original: float) -> float:
        """The loss that is allowed, in the unit of the measure. Raises BadInput for a share of nothing."""
        if self.relative and original == 0:
            raise BadInput("the original measures 0, and a share of that is nothing; give the drop as a plain number")
        return self.amount * (abs(original) if self.relative else 1.0)


def parse_drop(text: str, metric: str = "accuracy") -> Drop:
    """A drop as people write it: "0.5%" or "0.02".

    A percentage of what is itself a share of 0 to 1 (accuracy, top5, agreement) means percentage points: "0.5%" of
    accuracy is 0.005, from 91.7 % to 91.2 %. Of any other metric (perplexity, nats) it is a share of the original's
    value: "0.5%" of a perplexity of 5.0 is 0.025. A divergence is 0 for the original and has no percentage. A plain
    number is in the metric's own unit: "0.005" of accuracy, "0.02" nats of divergence. Raises BadInput.
    """
    number, percent = text.strip().removesuffix("%").rstrip(), text.strip().endswith("%")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise BadInput(f"a drop of {text!r}: give a number such as 0.005, or a percentage such as 0.5%")
    if not percent:
        return Drop(value)
    if metric == "divergence":
        raise BadInput(f"a drop of {text!r}: the original diverges from itself by 0; give nats, such as 0.02")
    return Drop(value / 100, relative=METRICS.get(metric, -1) < 0)


@dataclass(frozen=True)
class Measure:
    """A measure of quality, and whether more of it is better.

    fn: (module) -> quality: a number; or the scores of the inputs, a tensor [inputs] whose mean it is, or `Scores`.
    With scores two networks are compared input by input, which gives the difference a standard error. better: 1 if
    more is better, -1 if less (perplexity, divergence). points: whether it is a share, shown in percentage points.
    """

    fn: "Callable[[nn.Module], float | Tensor | Scores]"
    better: int = 1
    points: bool = False

    def __post_init__(self) -> None:
        if self.better not in (1, -1):
            raise BadInput(f"better={self.better}: give 1 if more of the quality is better, -1 if less")

    def __call__(self, model: nn.Module) -> float:
        """The quality of a model."""
        quality = self.scores(model)
        return quality.value if isinstance(quality, Scores) else quality

    def scores(self, model: nn.Module) -> "float | Scores":
        """The result of `fn`, a tensor as `Scores`."""
        quality = self.fn(model)
        if isinstance(quality, Tensor) and quality.ndim == 1 and len(quality) > 1:
            values = quality.detach().double().cpu()
            return Scores(values, torch.ones_like(values), step=float(bool((values == values.round()).all())))
        return quality if isinstance(quality, Scores) else float(quality)


def measure_of(
    metric: str, batches: Iterable[Any], reference: nn.Module, *, targets: Any = "last", forward: Forward | None = None
) -> Measure:
    """A measure of models on batches by one of METRICS; batches and targets as of `evaluate`.

    The batches are kept: they are run once for every measurement. Raises BadInput, then or when it is called, for a
    metric that the batches do not allow, such as accuracy without targets.
    """
    if metric not in METRICS:
        raise BadInput(f"metric {metric!r} is not one of {', '.join(METRICS)}")
    kept = list(batches)
    original = copy_of(reference) if metric in _AGAINST else None

    def measure(model: nn.Module) -> Scores:
        evaluation: Evaluation = evaluate(model, kept, reference=original, targets=targets, forward=forward)
        if metric not in evaluation.scores:
            raise BadInput(f"the batches do not tell {metric}: it needs targets (and top5 ten classes or more)")
        return evaluation.scores[metric]

    return Measure(measure, METRICS[metric], points=metric in _SHARES)
