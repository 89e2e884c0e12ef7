"""The LC algorithm in a loop of one's own: norms in training mode, as its published figures were made.

`waterfill.learn.run` folds norms and trains networks as they are deployed; then a matrix has the scales of its norm in
its rows, which a codebook of a few levels for all of them cannot hold. Here norms stay, and hold them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

import waterfill
from waterfill.learn import LC, FrozenCodes, Learner, Schedule, Training

RISE = 1000.0  # of the weight of the penalty, from the first C step to the last
_ROOM = 1.02  # of the file for numbers that are written more finely after the last phase
_LAST_RATE = 2e-3  # of Adam at first, in the last phase


Loss = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> a scalar."""


def by_the_book(model: nn.Module, batches: Any, spec: str, training: Training, loss: Loss) -> waterfill.CompressedModel:
    """A network learned by LC in place, by SGD in bfloat16; in the last share of the steps what is no code.

    batches: with a length.
    """
    steps, every = round(training.epochs * len(batches)), max(1, len(batches) // training.c_steps)
    learning = steps - round(training.last * steps)
    loop = _Loop(_endless(batches), every, loss)
    lc = LC(model, spec, schedule=Schedule(growth=RISE ** (every / learning)))
    few = next(loop.stream)
    lc.start(lambda: loop.loss_of(model.eval(), few))
    sgd = SGD(lc.groups(), training.first_rate, momentum=0.9, nesterov=True)
    loop.train(lc, sgd, learning, lambda done: lc.learning_rate(training.first_rate * (1 - done)))
    made = lc.result()
    if learning == steps:
        return made
    frozen = FrozenCodes(model, made, int(_ROOM * made.size))
    loop.train(frozen, Adam(frozen.groups()), steps - learning, lambda done: _LAST_RATE * (1 - done))
    return frozen.result()


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from batches


@dataclass(frozen=True)
class _Loop:
    """L steps on batches of a stream, and a C step after `every` so many."""

    stream: Iterator[Any]
    every: int
    loss: Loss

    def loss_of(self, model: nn.Module, batch: Any) -> Tensor:
        """In bfloat16."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.loss(model, batch)

    def train(self, learner: Learner, optimizer: Optimizer, steps: int, rate_at: Callable[[float], float]) -> None:
        """So many L steps. rate_at: share of the steps done -> the rate."""
        learner.model.train()
        for step, batch in zip(range(steps), self.stream, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step / steps) * group["pace"]
            learner.model.zero_grad()
            optimizer.zero_grad()
            (self.loss_of(learner.model, batch) + learner.penalty()).backward()
            learner.after_backward()
            optimizer.step()
            learner.after_step()
            if (step + 1) % self.every == 0 or step + 1 == steps:
                learner.c_step()
                if isinstance(learner, LC):
                    learner.multipliers_step()
        learner.model.eval()
