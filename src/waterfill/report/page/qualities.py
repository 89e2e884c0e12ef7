"""How good the network of a file is beside the original, on inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from waterfill.evaluation.evaluate import Evaluation, evaluate
from waterfill.model.compressed import load
from waterfill.network.batch_norm import fold_batch_norm
from waterfill.network.running.forward import Forward, copy_of
from waterfill.report.page.facts import Quality

_METRICS = {
    "accuracy": (1, True),
    "top5": (1, True),
    "perplexity": (-1, False),
    "divergence": (-1, False),
    "agreement": (1, True),
    "output_error": (-1, True),
}
"""What is shown, in this order: whether more is better, and whether it is a share."""
_SAME = {"divergence": 0.0, "agreement": 1.0, "output_error": 0.0}
"""The original's own values of what is measured against it."""


@dataclass(frozen=True, eq=False)
class Run:
    """original: the network, with its weights. batches: inputs to measure with. held_out: others, with targets if there
    are any; without them quality is measured on the first ones."""

    original: nn.Module
    batches: list[Any]
    held_out: Sequence[Any] = ()
    forward: Forward | None = None


def qualities(path: str, run: Run) -> list[Quality]:
    """The metrics that the inputs tell. Raises BadInput, Mismatch."""
    network = load(path).install(copy_of(run.original))
    measured = run.held_out or run.batches
    file = evaluated(network, run, measured)
    own = evaluate(run.original, measured, **_how(run))
    found = []
    for metric, (better, points) in _METRICS.items():
        value, original = getattr(file, metric), _SAME.get(metric, getattr(own, metric))
        if value is not None and original is not None:
            found.append(Quality(metric, original, value, better, points, _inputs(file)))
    return found


def output_errors(path: str, run: Run, *, folded: bool) -> dict[str, float]:
    """The error of each layer's outputs as the whole network runs, by the layer's name, on the first batch.

    folded: whether the file holds norms folded into layers, whose outputs are then those of both.
    """
    network, original = load(path).install(copy_of(run.original)), run.original
    if folded:
        original = fold_batch_norm(original, *run.batches, forward=run.forward)
    return dict(evaluate(network, run.batches[:1], reference=original, layers=True, **_how(run)).layers)


def evaluated(network: nn.Module, run: Run, batches: Sequence[Any]) -> Evaluation:
    """A network beside the original."""
    return evaluate(network, batches, reference=run.original, **_how(run))


def _how(run: Run) -> dict[str, Any]:
    return {"forward": run.forward, "targets": "last" if run.held_out else None}


def _inputs(found: Evaluation) -> int:
    scores = next(iter(found.scores.values()), None)
    return found.rows if scores is None else len(scores.sums)
