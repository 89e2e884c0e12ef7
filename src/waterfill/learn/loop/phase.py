"""Steps of training: one learner, one optimizer, from the last snapshot to the end."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from waterfill.errors import BadInput, WaterfillError
from waterfill.learn.learners.lc import LC
from waterfill.learn.learners.learner import Learner
from waterfill.learn.learners.ranks import by_first
from waterfill.learn.loop import snapshot
from waterfill.learn.loop.batches import Stream
from waterfill.learn.loop.folder import WorkFolder
from waterfill.learn.loop.objective import Objective
from waterfill.learn.loop.training import Training
from waterfill.model.compressed import CompressedModel
from waterfill.network.running.forward import as_deployed
from waterfill.network.running.state import unchanged
from waterfill.progress import Progress

_REMEMBERED = 0.95  # of the mean loss that is shown, from step to step
_LEAST_L_STEPS = 20  # between two C steps of the LC algorithm: momentum looks back over ten


@dataclass(frozen=True, eq=False)
class Phase:
    """A part of a training. name: of its snapshot. before, count, total: steps before it, its own, and in all."""

    name: str
    objective: Objective
    training: Training
    stream: Stream
    folder: WorkFolder
    before: int
    count: int
    total: int
    progress: Callable[[Progress], None] | None = None

    def every(self, method: type[Learner]) -> int:
        """The steps between two C steps."""
        steps = max(1, self.stream.steps // self.training.c_steps)
        return max(steps, _LEAST_L_STEPS) if method is LC else steps

    def train(self, learner: Learner, optimizer: Optimizer) -> CompressedModel:
        """Train from the snapshot on, if there is one.

        Raises:
            BadInput: a loss that is not finite, in any of the processes.
        """
        file, every, done = self.folder.snapshot(self.name), self.every(type(learner)), 0
        found = None if file is None else snapshot.read(file)
        if found is not None:
            learner.load(snapshot.restore(found, learner.model, optimizer))
            done = int(found[1])
        by_first(lambda: None)  # all have read it before a newer one is written
        mean: float | None = None
        with (
            self.objective.watching(learner.model),
            as_deployed(learner.model, self.objective.reference),
            torch.enable_grad(),
        ):
            for step, batch in zip(range(done, self.count), self.stream.from_step(self.before + done), strict=False):
                rate = self.training.first_rate * (1 - step / self.count)
                loss = self._step(learner, optimizer, batch, rate, f"step {step + 1} of {self.count}, {self.name}")
                mean = loss if mean is None else _REMEMBERED * mean + (1 - _REMEMBERED) * loss
                if (step + 1) % every == 0 or step + 1 == self.count:
                    learner.c_step()
                    if isinstance(learner, LC):
                        learner.multipliers_step()
                    if file is not None and self.stream.rank == 0:
                        snapshot.write(file, learner.model, learner.state(), optimizer, step + 1)
                self._report(self.before + step + 1, mean, learner.file_size)
        return learner.result()

    def _step(self, learner: Learner, optimizer: Optimizer, batch: Any, rate: float, where: str) -> float:
        """One L step; its loss, without the penalty."""
        for group in optimizer.param_groups:
            group["lr"] = (learner.learning_rate(rate) if isinstance(learner, LC) else rate) * group.get("pace", 1.0)
        learner.model.zero_grad()
        optimizer.zero_grad()
        with unchanged(learner.model):
            loss = self._loss(learner, batch, f"in {where}; lower the rate ({rate:g})")
            (loss + learner.penalty()).backward()
        for value in learner.model.parameters():  # embeddings can be told to leave out gradients of zero
            if value.grad is not None and value.grad.is_sparse:
                value.grad = value.grad.to_dense()
        if self.stream.ranks > 1:
            for value in learner.model.parameters():
                if value.requires_grad:  # even if no batch of this process has reached it
                    value.grad = torch.zeros_like(value) if value.grad is None else value.grad
                    dist.all_reduce(value.grad)
                    value.grad /= self.stream.ranks
        learner.after_backward()
        optimizer.step()
        learner.after_step()
        return float(loss.detach())

    def _loss(self, learner: Learner, batch: Any, where: str) -> Tensor:
        """The loss. Raises, in all processes, what any of them raises, and for one not finite."""
        loss, problem = torch.full((), math.nan, dtype=torch.float32, device="cpu"), None
        try:
            loss = self.objective(learner.model, batch)
        except WaterfillError as error:
            problem = error
        if problem is None and not bool(torch.isfinite(loss)):
            kept = self.folder.snapshot(self.name)
            found = kept is not None and kept.is_file()
            saved = f"the last snapshot is {kept}" if found else "no snapshot was kept yet (work=)"
            problem = BadInput(f"the loss is {float(loss.detach())} {where}; {saved}")
        if self.stream.ranks > 1:
            device = next(learner.model.parameters()).device
            failed = torch.tensor(float(problem is not None), dtype=torch.float32, device=device)
            dist.all_reduce(failed)
            if problem is None and float(failed) > 0:
                problem = BadInput(f"another process has failed {where}; its own message says why")
        if problem is not None:
            raise problem
        return loss

    def _report(self, step: int, loss: float, size: int | None) -> None:
        if self.progress is not None and self.stream.rank == 0:
            note = f"loss {loss:.3g}" + (f", {size:,} bytes" if size is not None else "")
            self.progress(Progress("learning", step, self.total, step, self.total, note))
