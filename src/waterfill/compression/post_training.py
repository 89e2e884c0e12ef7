"""Compression with a few hundred inputs, without training: the sequence of its steps.

Fold batch norms, measure the cost of errors, allocate bits at one price, fit the weights in the order of execution, and
correct small tensors. Each step is a module of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.arithmetic import AsSet, by_own_arithmetic, own_arithmetic
from waterfill.assignment import Assignment, Recipe, kept_names
from waterfill.calibration.calibrate import Calibration, bytes_in_all, calibrate, weights_of
from waterfill.compression.allocation.budget import Budget
from waterfill.compression.allocation.to_size.spend import Ledger
from waterfill.compression.blocks.in_memory import by_blocks
from waterfill.compression.options import Options
from waterfill.compression.steps.choice import choose_kinds, with_choice
from waterfill.compression.steps.few_inputs import better_without
from waterfill.compression.steps.prepare import prepare
from waterfill.compression.steps.repair import repair
from waterfill.compression.steps.sequential import refit_in_order
from waterfill.compression.store import MemoryStore
from waterfill.compression.task import Compression, Task, in_memory, model_of, resolve, running, with_remark
from waterfill.errors import BadInput
from waterfill.evaluation.outputs import ReferenceOutputs
from waterfill.importance import ImportanceMap
from waterfill.model.compressed import CompressedModel
from waterfill.network.batch_norm import folds_between
from waterfill.network.running.forward import as_deployed
from waterfill.network.running.inputs import Inputs
from waterfill.network.tensors import tensors_of
from waterfill.recipe import DEFAULT_RECIPE
from waterfill.storage.folds import pack
from waterfill.storage.remarks import FEW_SAMPLES, UNUSED
from waterfill.storage.work_directory import temporary_folder

DEFAULT_SPEC = (
    "Quantize(states=64) | Prune(pattern='columns', values=Quantize(states=64)) | LowRank(factors=Quantize(states=64))"
)
"""The recipe with inputs: for each weight the cheapest of trellis quantization, the same with pruned columns for which
the others compensate, and two low-rank factors."""
AUTOMATIC = "automatic"
"""The recipe in the notes of a file made with it: in a small network its whole text would take too many bytes."""


def automatic(
    recipe: "Recipe | Assignment | None", ignore: Sequence[str] = (), options: Options = Options()
) -> Assignment:
    """The recipes of the tensors, `DEFAULT_SPEC`, or codes alone for a way to run, where nothing else is said.

    Raises BadRecipe.
    """
    return running(Assignment.of(recipe, ignore, DEFAULT_RECIPE if options.runs else DEFAULT_SPEC), options)


@torch.inference_mode(False)
def compress_with_inputs(
    model: "nn.Module | Mapping[str, Tensor]",
    inputs: Inputs,
    recipe: Assignment,
    budget: Budget,
    options: Options,
) -> CompressedModel:
    """`compress` with inputs.

    Weights that no batch reaches get the bits of typical ones of their size, and a warning in the table.
    Raises BadInput, BadRecipe, BudgetError.
    """
    target = resolve(budget, recipe)
    notes = {"recipe": recipe.text or AUTOMATIC, "folded": False}
    made = by_blocks(model, inputs, recipe, target, (options, notes))
    if made is not None:
        return made
    with calibrated(model, inputs, recipe, options) as measured:
        return measured.to(target)


@contextmanager
def calibrated(
    model: "nn.Module | Mapping[str, Tensor]",
    inputs: Inputs,
    spec: "Recipe | Assignment | None" = None,
    options: Options = Options(),
    ignore: Sequence[str] = (),
) -> Iterator["Calibrated"]:
    """A model measured once, to be compressed to any number of budgets within the block, each as `compress` would.

    Norms are folded only where neither they nor the layer before them are ignored.

    Raises BadInput, BadRecipe.
    """
    inputs.check(model)
    assert isinstance(model, nn.Module)
    weights_of(model)  # NaN in a weight is reported as such, before it shows in outputs
    assignment = automatic(spec, ignore, options)
    tensors, aliases, _ = tensors_of(model)
    fixed = kept_names(assignment.by_name(tensors, aliases), aliases)
    inputs = Inputs(inputs.batches, AsSet.now(inputs.forward))
    with ExitStack() as stack:
        with own_arithmetic():
            prepared = prepare(model, inputs, options.steps, fixed)
            work, options = prepared.model, replace(options, steps=prepared.steps)
            calibration = _measured(work, inputs, stack.enter_context(_room(work, options)), options)
        notes = {
            "recipe": assignment.text or AUTOMATIC,
            "samples": calibration.samples,
            "folded": fold_notes(model, work) if prepared.folded else False,
            "unreached": sorted(calibration.unreached),
        }
        notes |= {"remarks": list(prepared.remarks)} if prepared.remarks else {}
        yield Calibrated(work, inputs, assignment, calibration, options, notes)


def _measured(model: nn.Module, inputs: Inputs, cache: Path | None, options: Options) -> Calibration:
    steps = options.steps
    return calibrate(
        model,
        inputs.batches,
        importance=steps.importance,
        probes=steps.probes,
        cache=cache,
        forward=inputs.forward,
        progress=options.report,
        memory=options.memory,
    )


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A model with folded norms and the importance of its weights. notes: of its files, how they were made."""

    model: nn.Module
    inputs: Inputs
    assignment: Assignment
    calibration: Calibration
    options: Options
    notes: dict[str, Any]

    def __call__(self, bits: float) -> CompressedModel:
        """The model in a file of so many bits per weight. Raises BudgetError."""
        return self.to(Budget(bits=bits))

    def with_spec(self, spec: Recipe) -> "Calibrated":
        """The same measurements, for another spec. Raises BadRecipe."""
        other = automatic(spec, (), self.options)
        return replace(self, assignment=other, notes=self.notes | {"recipe": other.text})

    def allowed(self, budget: Budget) -> int | None:
        """Bytes that a file may have; None where a price decides. Raises BudgetError."""
        return self._task.allowed(budget)

    @by_own_arithmetic
    @torch.inference_mode(False)
    def to(self, budget: Budget) -> CompressedModel:
        """The model compressed to a budget. Raises BudgetError."""
        compression, ledger = self._fitted(budget, self.calibration)
        size = compression.task.allowed(budget)
        made = _refitted(compression, ledger, self.model, self.inputs, size)
        if self.options.steps.repair:
            made = _repaired(made, self.model, self.inputs, size)
        if size is not None and 1 < self.calibration.samples < FEW_SAMPLES:
            made = self._guarded(made, budget)
        return with_remark(made, size, compression.counted(compression.task.memory_of(made)))

    def _fitted(self, budget: Budget, importance: ImportanceMap | None) -> tuple[Compression[MemoryStore], Ledger]:
        """Every weight fitted by itself, with this importance, or an assumed one."""
        task = self._task if importance is self.calibration else self._task_of(importance)
        notes = task.notes | self.notes | ({"remarks": [UNUSED]} if importance is None else {})
        compression = in_memory(replace(task, weights=list(task.weights), notes=notes), self.options)
        choose_kinds(compression, budget)
        return compression, compression.meet(budget)

    @cached_property
    def _task(self) -> Task:
        """Kept from one budget to the next: what is measured of a weight for one is needed for others too."""
        return self._task_of(self.calibration)

    def _task_of(self, importance: ImportanceMap | None) -> Task:
        task = Task.of(self.model, self.assignment, importance)
        return replace(task, weights=with_choice(task.weights))

    def _guarded(self, made: CompressedModel, budget: Budget) -> CompressedModel:
        """The model as made with few inputs, or without any where held-out inputs show that to be better."""
        without = better_without(
            self.model,
            self.inputs,
            lambda some: _measured(self.model, some, None, self.options),
            lambda importance: model_of(self._fitted(budget, importance)[0]),
        )
        return made if without is None else without


def _refitted(
    compression: Compression[MemoryStore], ledger: Ledger, work: nn.Module, inputs: Inputs, size: int | None
) -> CompressedModel:
    """The model with its weights fitted again in order, or as before where its outputs were closer."""
    before, options = model_of(compression), compression.options
    if not options.steps.stages:
        return before
    try:
        refit_in_order(compression, ledger, work, inputs, size)
    except BadInput:  # with so few bits the outputs are not finite, and there is nothing to compensate
        return before
    after = model_of(compression)
    if size is not None and compression.run.file_bytes(ledger) > size:  # one of few bytes may not fit a second time
        return before
    judge = ReferenceOutputs(work, inputs.batches, inputs.forward)
    return min(after, before, key=judge.error)


@contextmanager
def _room(model: nn.Module, options: Options) -> Iterator[Path | None]:
    """The folder for the results of calibration; None where memory holds all of them."""
    if options.cache is not None or bytes_in_all(model) <= options.memory:
        yield options.cache
        return
    with temporary_folder() as folder:
        yield folder


def fold_notes(model: nn.Module, work: nn.Module) -> "dict[str, Any] | bool":
    """The notes on the norms that were folded."""
    tensors, aliases, _ = tensors_of(work)
    return pack(folds_between(model, work), [*tensors, *aliases])


def _repaired(made: CompressedModel, work: nn.Module, inputs: Inputs, allowed: int | None) -> CompressedModel:
    """The model with the repairs that help and, where there is a limit, fit."""
    if not _can_hold_out(work, inputs):
        return made
    repaired = repair(made, work, inputs.batches, forward=inputs.forward).model
    assert isinstance(repaired, CompressedModel)
    return repaired if allowed is None or repaired.size <= allowed else made


def _can_hold_out(work: nn.Module, inputs: Inputs) -> bool:
    """Whether there is more than one input, so that some can decide on what was fitted to the others."""
    try:
        with as_deployed(work):
            for part in inputs.hold_out(0.25):
                next(part.outputs(work))  # a single input cannot be held out
    except BadInput:
        return False
    return True
