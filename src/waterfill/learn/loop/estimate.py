"""What a training would take, from a few of its steps."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Adam

from waterfill.learn.learners.vectors import can_be_learned
from waterfill.learn.loop.batches import Stream
from waterfill.learn.loop.objective import Loss, Objective
from waterfill.learn.loop.training import STRAIGHT_THROUGH, Training
from waterfill.network.running.forward import Forward, as_deployed, copy_of
from waterfill.network.running.inputs import Inputs
from waterfill.network.running.state import random_numbers, unchanged

_MEASURED = 2  # steps, after a first one
_COPIES = 7  # in float32: both networks, gradients, positions, what a code costs there, and two moments of Adam
_DEFAULT = Training()


@dataclass(frozen=True)
class Estimate:
    """steps: of the training. seconds: that they take, without compressing before. memory: bytes, without what a step
    needs for its own layers."""

    steps: int
    seconds: float
    memory: int


def estimate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: Loss | None = None,
    forward: Forward | None = None,
    training: Training = _DEFAULT,
) -> Estimate:
    """What `run` with the same arguments would take beside compressing, by straight-through training.

    Args:
        model, batches, loss, forward, training: as for `run`; nothing of them is changed.

    Raises:
        BadInput: what `run` would raise for the first batch.
    """
    with random_numbers(training.seed):
        Inputs(batches, forward).check(model)
        stream = Stream(batches, training.seed)
        work = copy_of(model).requires_grad_(True)
        learned = [value for value in work.parameters() if can_be_learned(value)]
        objective = Objective(model, forward, loss, replace(training, features=0.0))
        adam, took = Adam(learned, 0.0), []
        with as_deployed(work, model), torch.enable_grad():
            for _, batch in zip(range(1 + _MEASURED), stream.from_step(0), strict=False):
                began = time.perf_counter()
                adam.zero_grad()
                with unchanged(work):
                    objective(work, batch).backward()
                stepped = time.perf_counter()
                adam.step()
                ended = time.perf_counter()
                took.append(ended - began + ended - stepped)  # rounding to codes takes about as long as Adam
    steps = max(1, round(training.epochs * stream.steps))
    # The vectors of what `compress` makes are trained beside, for as many steps as come last.
    more = training.last if training.method == STRAIGHT_THROUGH else 0.0
    return Estimate(steps, (1 + more) * steps * min(took[1:]), _COPIES * 4 * sum(value.numel() for value in learned))
