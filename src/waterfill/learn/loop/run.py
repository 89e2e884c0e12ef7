"""The ready-made loop: a network compressed, trained in compressed form and written within its budget."""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from waterfill.compression.allocation.budget import Budget
from waterfill.compression.options import Options
from waterfill.compression.post_training import calibrated, fold_notes
from waterfill.compression.steps.prepare import prepare
from waterfill.compression.task import resolve
from waterfill.dtypes import octets
from waterfill.errors import BadInput, BudgetError
from waterfill.learn.learners.lc import LC
from waterfill.learn.learners.learner import Learner
from waterfill.learn.learners.small_tensors import SmallTensors
from waterfill.learn.learners.straight_through import StraightThrough
from waterfill.learn.learners.vectors import trained_vectors
from waterfill.learn.loop import snapshot
from waterfill.learn.loop.batches import Stream
from waterfill.learn.loop.objective import Loss, Objective
from waterfill.learn.loop.training import LC_STEPS, Training
from waterfill.model.compressed import CompressedModel, load
from waterfill.network.running.forward import Forward, as_deployed
from waterfill.network.running.inputs import Inputs
from waterfill.part import Spec
from waterfill.progress import Progress
from waterfill.recipe import as_spec
from waterfill.storage.work_directory import Journal

_CALIBRATED = 8  # batches that the compression before is calibrated with
_KEPT, _CODES, _VECTORS = ("start.wf", "codes.wf"), "codes", "vectors"
_MOMENTA = (0.9, 0.99)  # of Adam, for codes and vectors


_DEFAULT, _OPTIONS = Training(), Options()


def run(  # noqa: PLR0913 - what is learned, from what, to what size, and how the work is done
    model: nn.Module,
    batches: Iterable[Any],
    *,
    budget: Budget,
    spec: "Spec | str" = "Quantize()",
    loss: Loss | None = None,
    forward: Forward | None = None,
    training: Training = _DEFAULT,
    options: Options = _OPTIONS,
) -> CompressedModel:
    """Compress a network and train it in compressed form, without labels unless a loss is given.

    In several processes (`torch.distributed`) each takes its share of the batches, and all return the same.

    Args:
        model: the network, which stays as it is; a copy is trained, in evaluation mode, its norms folded.
        batches: inputs as for `compress`, a list or a loader with a length; far more than a few hundred.
        budget: what the file may have.
        spec: what weights become; for "straight-through" scalar codes.
        loss: (what the model returned, the batch) -> a scalar; None: the distance to what `model` says (`Imitation`).
        forward: as for `compress`.
        training: epochs, rate, method.
        options: progress, and `work`: a folder for snapshots, from which the same call goes on.

    Returns:
        The network, within its budget.

    Raises:
        BadInput: a loss that is not finite, batches that end early, outputs that cannot be compared.
        BudgetError: a budget that cannot be met.
        PlanMismatch: a folder of snapshots of another training.

    Example:
        >>> small = learn.run(model, inputs.split(128), budget=Budget(ratio=24), training=Training(epochs=5))
    """
    Inputs(batches, forward).check(model)
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    objective = Objective(model, forward, loss, training.features, training.bfloat16)
    work = _Run(model, objective, training, options, Stream(batches, training.seed, rank, ranks))
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)  # a loader may draw; every process and every run is to get the same
        few = Inputs(Inputs(batches, forward).spread(_CALIBRATED), forward)
    if options.work is None:
        with torch.random.fork_rng():
            return work.result(few, budget, as_spec(spec))
    with Journal.claim(options.work) if rank == 0 else nullcontext(), torch.random.fork_rng():
        journal = Journal.begin(options.work, _plan(model, budget, spec, training)) if rank == 0 else None
        work.wait()
        try:
            made = work.result(few, budget, as_spec(spec))
        except BudgetError:
            if journal is not None and not (options.work / _files()[-1]).is_file():  # nothing was trained yet
                _remove(options.work, journal)
            raise
        work.wait()
        if journal is not None:
            _remove(options.work, journal)
    return made


def _files() -> list[str]:
    """What a training keeps in its folder."""
    return [*_KEPT, f"{_VECTORS}.safetensors", f"{_CODES}.safetensors"]


def _remove(folder: Path, journal: Journal) -> None:
    for name in _files():
        (folder / name).unlink(missing_ok=True)
    journal.remove()


@dataclass(frozen=True, eq=False)
class _Run:
    """One training: compress, train codes, freeze them, train vectors; what is done is kept in the work folder."""

    model: nn.Module
    objective: Objective
    training: Training
    options: Options
    stream: Stream

    def result(self, few: Inputs, budget: Budget, spec: Spec) -> CompressedModel:
        """The network within its budget."""
        steps = max(1, round(self.training.epochs * self.stream.steps))
        last = round(self.training.last * steps)
        if self.objective.has_stages:
            self.objective.choose_stages(self._copy(few), few.first)
        if self.training.method == LC_STEPS:
            codes = self._kept(_KEPT[1], lambda: self._by_lc(few, budget, spec, steps - last))
        else:
            start = self._kept(_KEPT[0], lambda: self._compressed(few, budget, spec))
            codes = self._kept(_KEPT[1], lambda: self._straight_through(few, start, budget, steps - last))
        work = self._copy(few)
        if not last or not trained_vectors(work, codes):
            return codes
        size = self._bytes(codes, budget) or codes.size
        learner = SmallTensors(work, codes, size)
        adam = torch.optim.Adam(learner.parameters(), self.training.rate, betas=_MOMENTA)
        return self._phase(_VECTORS, learner, adam, (steps - last, last))

    def _compressed(self, few: Inputs, budget: Budget, spec: Spec) -> CompressedModel:
        """The network compressed without training."""
        with calibrated(self.model, few, spec, replace(self.options, work=None)) as measured:
            return measured.to(resolve(budget, spec))

    def _straight_through(self, few: Inputs, made: CompressedModel, budget: Budget, steps: int) -> CompressedModel:
        learner = StraightThrough(self._copy(few), made, self._bytes(made, budget))
        adam = torch.optim.Adam(learner.parameters(), self.training.rate, betas=_MOMENTA)
        return self._phase(_CODES, learner, adam, (0, steps))

    def _by_lc(self, few: Inputs, budget: Budget, spec: Spec, steps: int) -> CompressedModel:
        work = self._copy(few)
        folded = fold_notes(self.model, work)  # before training moves what is folded
        learner = LC(work, spec, budget=budget, schedule=self.training.schedule)
        with as_deployed(work, self.model), torch.enable_grad():
            learner.start(self.objective(work, few.first))
        learner.c_step()
        sgd = torch.optim.SGD(learner.parameters(), self.training.rate, momentum=_MOMENTA[0])
        made = self._phase(_CODES, learner, sgd, (0, steps))
        return replace(made, notes=made.notes | {"folded": folded})

    def _phase(
        self, name: str, learner: Learner, optimizer: torch.optim.Optimizer, steps: tuple[int, int]
    ) -> CompressedModel:
        """Train from the snapshot on, if there is one. steps: those before this phase, and its own."""
        before, count = steps
        every = max(1, self.stream.steps // self.training.c_steps)
        file = None if self.options.work is None else self.options.work / f"{name}.safetensors"
        found, done = (None if file is None else snapshot.read(file)), 0
        if found is not None:
            learner.load(snapshot.restore(found, learner.model, optimizer))
            done = int(found[1])
        self.wait()  # before another process writes a newer snapshot
        with self.objective.watching(learner.model), as_deployed(learner.model, self.model), torch.enable_grad():
            for step, batch in zip(range(done, count), self.stream.from_step(before + done), strict=False):
                rate = self.training.rate * (1 - step / count)
                self._step(learner, optimizer, batch, rate, f"step {step + 1} of {count}, {name}")
                if (step + 1) % every == 0 or step + 1 == count:
                    learner.c_step()
                    if isinstance(learner, LC):
                        learner.multipliers_step()
                    if file is not None and self.stream.rank == 0:
                        snapshot.write(file, learner.model, learner.state(), optimizer, step + 1)
                self._report(before + step + 1)
        return learner.result()

    def _step(self, learner: Learner, optimizer: torch.optim.Optimizer, batch: Any, rate: float, where: str) -> None:
        """One L step. Raises BadInput for a loss that is not finite."""
        for group in optimizer.param_groups:
            group["lr"] = learner.learning_rate(rate) if isinstance(learner, LC) else rate
        learner.model.zero_grad()
        optimizer.zero_grad()
        loss = self.objective(learner.model, batch)
        if not bool(torch.isfinite(loss)):
            kept = f"the last snapshot is in {self.options.work}" if self.options.work else "nothing was kept (work=)"
            raise BadInput(f"the loss is {float(loss.detach())} in {where}; lower the rate ({rate:g}); {kept}")
        (loss + learner.penalty()).backward()
        if self.stream.ranks > 1:
            for value in learner.model.parameters():
                if value.grad is not None:
                    dist.all_reduce(value.grad)
                    value.grad /= self.stream.ranks
        learner.after_backward()
        optimizer.step()
        learner.after_step()

    def _copy(self, few: Inputs) -> nn.Module:
        """A copy of the network with its norms folded, all of its parameters to be trained."""
        return prepare(self.model, few, self.options.steps).model.requires_grad_(True)

    def _bytes(self, made: CompressedModel, budget: Budget) -> int | None:
        return budget.file_bytes(made.weights, int(made.notes["original"]))

    def _kept(self, name: str, make: Callable[[], CompressedModel]) -> CompressedModel:
        """A result of an earlier run of the same training, or a new one, which is kept where there is a folder."""
        file = None if self.options.work is None else self.options.work / name
        known = file is not None and file.is_file()
        self.wait()
        made = load(file) if known and file is not None else make()
        if file is not None and not known and self.stream.rank == 0:
            made.save(file, force=True)
        self.wait()
        return made

    def wait(self) -> None:
        """Until all processes are here."""
        if self.stream.ranks > 1:
            dist.barrier()

    def _report(self, step: int) -> None:
        if self.options.progress is not None and self.stream.rank == 0:
            total = max(1, round(self.training.epochs * self.stream.steps))
            self.options.progress(Progress("learning", step, total, step, total))


def _plan(model: nn.Module, budget: Budget, spec: "Spec | str", training: Training) -> dict[str, Any]:
    """What makes a training this one: the weights it begins with, and all that was asked for."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(octets(value.detach().cpu()).numpy().data)
    return {"weights": digest.hexdigest(), "budget": budget.given, "spec": f"{spec!r}", "training": repr(training)}
