"""Distillation: a student of any architecture learns to say what a teacher says, and to see what it sees."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from waterfill.errors import BadInput, BadRecipe
from waterfill.learn.features import watched
from waterfill.learn.loop.batches import Stream
from waterfill.learn.losses import IMITATION
from waterfill.network.running.batches import each_tensor, output_of
from waterfill.network.running.forward import Forward, as_deployed, call, result_of
from waterfill.network.running.inputs import Inputs
from waterfill.network.running.state import random_numbers, unchanged
from waterfill.network.running.wrapped import unwrapped
from waterfill.progress import Progress

Comparison = Callable[[Any, Any], Tensor]
"""(what the student returned, what the teacher returned) -> a scalar."""
_TINY = 1e-12
_WEIGHT_DECAY = 1e-4
_NO_GRADIENT = (
    "no gradient leads from the loss to the student: it runs without one (no_grad, inference_mode), all of its "
    "parameters are frozen, or the loss does not depend on what it returns"
)


@dataclass(frozen=True)
class Distillation:
    """How a student learns from a teacher.

    Args:
        epochs: passes through the batches.
        rate: the learning rate at first, where no optimizer is given; those of all groups fall to zero.
        features: by the name of a module of the student, that of the teacher whose output its own is to predict,
            through a linear map of channels that is learned along and thrown away (arXiv 1412.6550).
        feature_weight: of the features beside the outputs.
        loss: of outputs; for logits the divergence at a temperature, for other outputs the relative squared error.
        optimizer: parameters -> optimizer; None: AdamW.
        seed: of the order of batches.
        progress: called after each step.

    Raises:
        BadRecipe: for numbers that make no sense.
    """

    epochs: float = 10.0
    rate: float = 1e-3
    features: Mapping[str, str] = field(default_factory=dict)
    feature_weight: float = 1.0
    loss: Comparison = IMITATION
    optimizer: Callable[[list[Tensor]], Optimizer] | None = None
    seed: int = 0
    progress: Callable[[Progress], None] | None = None

    def __post_init__(self) -> None:
        if not (self.epochs > 0 and self.rate > 0 and self.feature_weight >= 0):
            raise BadRecipe(f"{self}: epochs and rate are positive, feature_weight is not negative")


_DEFAULT = Distillation()


def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    how: Distillation = _DEFAULT,
) -> nn.Module:
    """Train a student, in place, to say what a teacher says: classification, sequences and regression alike.

    Args:
        student: in training mode while it learns, in evaluation mode after.
        teacher: stays as it is; run in evaluation mode.
        batches: inputs, without labels; a list or a loader with a length.
        forward: (model, batch) -> outputs, of either network, where a batch is not simply the arguments.
        how: epochs, rate, features, loss.

    Returns:
        The student. To go on: `compress(student, batches, ...)`, or `learn.run(student, batches, ...)`.

    Raises:
        BadInput: a teacher that shares parameters with the student, outputs that cannot be compared, a module that has
            no such name, a loss that is not finite.

    Example:
        >>> student = distill(Small(), teacher, loader, how=Distillation(features={"body": "layer3"}))
    """
    if {id(value) for value in student.parameters()} & {id(value) for value in teacher.parameters()}:
        raise BadInput("the student and the teacher share parameters, and the teacher would change; give a copy")
    with (
        random_numbers(how.seed),
        watched(unwrapped(student), how.features, "student") as seen,
        watched(unwrapped(teacher), how.features.values(), "teacher") as wanted,
    ):
        inputs = Inputs(batches, forward)
        inputs.check(student)
        pairs = [_Pair(own, seen, other, wanted) for own, other in how.features.items()]
        with as_deployed(student, teacher):
            for model in (student, teacher):
                call(model, inputs.first, forward)
            for pair in pairs:
                pair.begin()
        with as_deployed(teacher), torch.enable_grad():
            student.train()
            _train(student, Stream(batches, how.seed), how, pairs, forward, teacher)
    return student.eval()


def _train(  # noqa: PLR0913 - both networks, what they are run on, and how
    student: nn.Module,
    stream: Stream,
    how: Distillation,
    pairs: "list[_Pair]",
    forward: Forward | None,
    teacher: nn.Module,
) -> None:
    """All steps. Raises BadInput for a loss that is not finite."""
    steps = max(1, round(how.epochs * stream.steps))
    learned = [p for p in student.parameters() if p.requires_grad] + [p for pair in pairs for p in pair.parameters()]
    if not learned:
        raise BadInput(_NO_GRADIENT)
    optimizer = how.optimizer(learned) if how.optimizer else AdamW(learned, how.rate, weight_decay=_WEIGHT_DECAY)
    first = [group["lr"] for group in optimizer.param_groups]
    for step, batch in zip(range(steps), stream.from_step(0), strict=False):
        for group, rate in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        with torch.no_grad(), unchanged(teacher):
            expected = result_of(teacher, each_tensor(batch, Tensor.clone), forward)
        loss = how.loss(result_of(student, each_tensor(batch, Tensor.clone), forward), expected)
        for pair in pairs:
            loss = loss + how.feature_weight * pair.loss()
        if not bool(torch.isfinite(loss)):
            raise BadInput(f"the loss is {float(loss.detach())} in step {step + 1} of {steps}; lower the rate")
        if not loss.requires_grad:
            raise BadInput(_NO_GRADIENT)
        loss.backward()
        optimizer.step()
        if how.progress is not None:
            how.progress(Progress("learning", step + 1, steps, step + 1, steps))
    if not all(bool(torch.isfinite(value).all()) for value in student.parameters() if value.is_floating_point()):
        raise BadInput("the student has weights that are not finite after the last step; lower the rate")


class _Pair:
    """A module of the student whose output is to predict that of a module of the teacher.

    own, other: their names. seen, wanted: what student and teacher see, by name.
    """

    def __init__(self, own: str, seen: dict[str, Any], other: str, wanted: dict[str, Any]) -> None:
        self._outputs = ((seen, own), (wanted, other))
        self._map: nn.Linear | None = None

    def parameters(self) -> list[Tensor]:
        return [] if self._map is None else list(self._map.parameters())

    def begin(self) -> None:
        """Make the map, now that both outputs are known."""
        own, other = (self._channels(i) for i in (0, 1))
        self._map = nn.Linear(own.shape[-1], other.shape[-1], dtype=torch.float32, device=own.device)

    def loss(self) -> Tensor:
        """The squared error relative to the variance of the teacher's features."""
        assert self._map is not None
        own, other = self._channels(0), self._channels(1).detach()
        if own.shape[:-1] != other.shape[:-1]:
            raise BadInput(f"features of shapes {list(own.shape)} and {list(other.shape)} are not of the same places")
        variance = (other - other.mean()).square().mean().clamp_min(_TINY)
        return (self._map(own) - other).square().mean() / variance

    def _channels(self, i: int) -> Tensor:
        """An output with channels last, in the places of the smaller of the two."""
        found = [output_of(seen[name]).float() for seen, name in self._outputs if name in seen]
        if len(found) < 2:
            raise BadInput("a module whose features count was not run; name one that every batch goes through")
        if found[0].ndim != found[1].ndim:
            shapes = [list(one.shape) for one in found]
            raise BadInput(f"features of shapes {shapes[0]} and {shapes[1]} are not of the same places")
        value = found[i]
        if value.ndim < 4:
            return value
        size = [min(sizes) for sizes in zip(*(one.shape[2:] for one in found), strict=True)]
        pool: Callable[..., Tensor] = F.adaptive_avg_pool2d if value.ndim == 4 else F.adaptive_avg_pool3d
        return pool(value, size).movedim(1, -1)
