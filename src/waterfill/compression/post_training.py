"""The whole way from a network and a few hundred of its inputs to a file, without training.

Fold norms, measure what errors cost, share out the bits at one price, fit the weights in the order in which they run,
and repair what small tensors can. Each step is a module of its own; this one only puts them in a row.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from waterfill import recipe
from waterfill.calibration.calibrate import bytes_in_all, calibrate
from waterfill.compression.allocation.budget import Budget
from waterfill.compression.allocation.spend import Ledger
from waterfill.compression.options import Steps
from waterfill.compression.steps.choice import settle_choices
from waterfill.compression.steps.repair import repair
from waterfill.compression.steps.sequential import refit_in_order
from waterfill.compression.task import Compression, resolve, with_remark
from waterfill.errors import BadInput
from waterfill.evaluation.outputs import Judge
from waterfill.model.compressed import CompressedModel
from waterfill.network.batch_norm import fold_batch_norm
from waterfill.network.batches import check_batches, split
from waterfill.network.forward import Forward, as_deployed, call, copy_of
from waterfill.part import Choice, Spec, terms_of
from waterfill.progress import Progress

DEFAULT_SPEC = (
    "Quantize(states=64) | Prune(pattern='columns', values=Quantize(states=64)) | LowRank(factors=Quantize(states=64))"
)
"""What to look for where there are data: codes along a trellis, for each weight as they are, without the columns that
others can make up for, or of two thin factors."""
AUTOMATIC = "automatic"
"""What a file says of its recipe if it was that one: in a small network its text would be dear."""


def compress_with_data(  # noqa: PLR0913 - budgets exclude one another, and each deserves its own word
    model: nn.Module,
    batches: Iterable[Any],
    spec: "Spec | str" = DEFAULT_SPEC,
    *,
    bits: float | None = None,
    size: int | None = None,
    ratio: float | None = None,
    price: float | None = None,
    forward: Forward | None = None,
    steps: Steps = Steps(),
    progress: Callable[[Progress], None] | None = None,
) -> CompressedModel:
    """Compress a module with a few hundred unlabelled inputs to a budget; budgets as of `compress`.

    batches: inputs, each a tensor, a tuple of arguments or a dict of them by keyword, or anything that
    `forward(model, batch)` takes; they are gone through several times. The model is not changed. The file loads into
    the model's own class; with `steps.fold` its norms hold constants and its convolutions what they held. Weights that
    the batches never reach get the bits of typical ones of their size, and a warning in the table.
    Raises BadInput (no batches, batches that can be read only once, NaN), BadRecipe, BudgetError.
    """
    check_batches(model, batches)
    if isinstance(batches, Iterator):
        raise BadInput("batches are gone through several times: give a list or a loader, such as inputs.split(32)")
    budget = resolve(Budget(bits, size, ratio, price), spec, lossless=False)
    wanted = recipe.parse(spec) if isinstance(spec, str) else spec
    specs = terms_of(Choice, wanted)
    work, folded = _folded(model, batches, forward, steps.fold)
    with _room(work, steps) as cache:
        calibration = calibrate(
            work,
            batches,
            importance=steps.importance,
            probes=steps.probes,
            cache=cache,
            forward=forward,
            progress=progress,
            memory=steps.memory,
        )
        compression = Compression.of(work, specs[0], calibration, progress)
        compression.notes.update(
            recipe=AUTOMATIC if spec == DEFAULT_SPEC else repr(wanted),
            samples=calibration.samples,
            folded=folded,
            unreached=sorted(calibration.unreached),
        )
        size = compression.allowed(budget)
        settle_choices(compression, specs, budget)
        ledger = compression.run.meet(budget, compression.original)
        made = _refitted(compression, ledger, work, batches, size, forward=forward, steps=steps)
    repaired = _repaired(made, work, batches, forward, size) if steps.repair else made
    return with_remark(repaired, size)


def _refitted(  # noqa: PLR0913 - what was found so far, and how the network is run
    compression: Compression,
    ledger: Ledger,
    work: nn.Module,
    batches: Iterable[Any],
    size: int | None,
    *,
    forward: Forward | None,
    steps: Steps,
) -> CompressedModel:
    """The model with its weights fitted again in order, or as it was where its outputs were closer."""
    before = compression.model()
    if not steps.stages:
        return before
    stages, memory = steps.stages, steps.memory
    refit_in_order(compression, ledger, work, batches, size=size, forward=forward, stages=stages, memory=memory)
    after = compression.model()
    if size is not None and after.size > size:  # of a few bytes there may be no second way to meet them
        return before
    judge = Judge(work, batches, forward)
    return min(after, before, key=judge.error)


@contextmanager
def _room(model: nn.Module, steps: Steps) -> Iterator[Path | None]:
    """The folder for what calibration finds; None where memory holds all of it."""
    if steps.cache is not None or bytes_in_all(model) <= steps.memory:
        yield steps.cache
        return
    with TemporaryDirectory(prefix="waterfill-") as folder:
        yield Path(folder)


def _folded(model: nn.Module, batches: Iterable[Any], forward: Forward | None, wanted: bool) -> tuple[nn.Module, bool]:
    """The model with its batch norms folded, and whether there were any."""
    batch = next(iter(batches), None)
    if batch is None:
        raise BadInput("there are no batches to calibrate with; does the loader yield any, or was it used up?")
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    return (fold_batch_norm(model, batch, forward=forward), True) if wanted and norms else (model, False)


def _repaired(
    made: CompressedModel, work: nn.Module, batches: Iterable[Any], forward: Forward | None, allowed: int | None
) -> CompressedModel:
    """The model with the repairs that help and, where there is a limit, fit."""
    if not _can_hold_out(work, batches, forward):
        return made
    found = repair(made, copy_of(work), batches, forward=forward).model
    assert isinstance(found, CompressedModel)
    return found if allowed is None or found.size <= allowed else made


def _can_hold_out(work: nn.Module, batches: Iterable[Any], forward: Forward | None) -> bool:
    """Whether there is more than one input, so that some can decide on what was fitted to the others."""
    try:
        parts = split(batches, 0.25)
        with as_deployed(work):
            for part in parts:
                call(work, part[0], forward)  # what was cut in two may have been a single input
    except BadInput:
        return False
    return True
