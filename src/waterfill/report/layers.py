"""The weights of a model, and what errors in them cost: as measured with inputs, or as assumed without any."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from waterfill.calibration.calibrate import Calibration, calibrate, weights_of
from waterfill.compression.allocation.budget import Budget
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.allocation.without_data import assumed
from waterfill.compression.job import Job
from waterfill.compression.options import Steps
from waterfill.compression.task import Task
from waterfill.importance import Importance
from waterfill.network.batch_norm import fold_batch_norm
from waterfill.network.layout import KERNEL, MATRIX, STACK, Layout
from waterfill.network.running.forward import Forward
from waterfill.recipe import DEFAULT_RECIPE
from waterfill.report.folded import Source, as_folded, originals_of
from waterfill.storage.folds import Fold

_AS_MADE = Steps()  # errors cost what they cost where files are made


@dataclass(frozen=True)
class Layer:
    """A weight: where it comes from, and what its errors cost: importance, or `factor` times what is assumed by
    `lines`."""

    layout: Layout
    load: Callable[[], Tensor]
    importance: Importance | None = None
    factor: float = 1.0
    lines: str = ""

    def matrices(self) -> list[tuple[Tensor, Importance]]:
        """Its matrices, and what errors in each cost."""
        targets = self.layout.split(self.load())
        return [(t, self.importance or assumed(t, self.layout, self.lines).scaled(self.factor)) for t in targets]


@dataclass(frozen=True)
class Layers:
    """Weights by name, and why others are left out. measured: whether what errors cost is known from inputs."""

    weights: dict[str, Layer]
    left_out: Mapping[str, str]
    measured: bool


def assumed_layers(source: Source, folds: Iterable[Fold] = ()) -> Layers:
    """The weights of a model, these norms folded; what errors in them cost is assumed from their values.

    Those of a checkpoint are read when they are needed, unless norms are folded. Raises BadInput, CorruptFile.
    """
    weights = _weights(source, list(folds))
    left_out = {w.name: w.kept for w in weights if w.kept and len(w.layout.shape) > 1}
    own = [w for w in weights if is_matrix(w.layout) and w.name not in left_out]
    known = {w.name: Layer(w.layout, w.tensor, None, w.factor, w.lines) for w in own}
    return Layers(known, left_out, measured=False)


def _weights(source: Source, folds: list[Fold]) -> list[Weight]:
    if folds:
        folded = as_folded(originals_of(source), folds)
        return Task.of({name: original.load() for name, original in folded.items()}, DEFAULT_RECIPE, None).weights
    if isinstance(source, str | Path):
        return Job.of(source, DEFAULT_RECIPE, Budget(price=1.0)).task.weights
    return Task.of(source, DEFAULT_RECIPE, None).weights


def is_matrix(layout: Layout) -> bool:
    """Whether a tensor has two dimensions or more that are weights."""
    return layout.role in (MATRIX, KERNEL, STACK)


def measured_layers(network: nn.Module, batches: list[Any], forward: Forward | None = None, *, fold: bool) -> Layers:
    """The weights of a network that the inputs reach, with what errors in them cost as files are made, and why the
    others are left out. fold: whether norms are folded first. Raises BadInput."""
    if fold and batches:
        network = fold_batch_norm(network, *batches, forward=forward)
    return layers_with(
        network, calibrate(network, batches, importance=_AS_MADE.importance, probes=_AS_MADE.probes, forward=forward)
    )


def layers_with(network: nn.Module, calibration: Calibration) -> Layers:
    """The weights of a network that was calibrated as it is."""
    weights, layouts = weights_of(network)
    known = {
        name: Layer(layout, partial(weights.__getitem__, name), calibration[name])
        for name, layout in layouts.items()
        if is_matrix(layout) and name in calibration
    }
    return Layers(known, calibration.unreached, measured=True)
