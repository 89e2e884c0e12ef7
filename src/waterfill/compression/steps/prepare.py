"""The network that is worked on: a copy of the caller's, which is never run, with its norms folded.

What cannot work shows here, before anything that takes long.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from waterfill.compression.options import Steps
from waterfill.network.batch_norm import fold_in_place, nearly_equal
from waterfill.network.running.forward import as_deployed, call, copy_of
from waterfill.network.running.inputs import Inputs

WHOLE = ""
"""The name under which warnings of a table are kept that concern no tensor alone."""
_UNSTEADY = (
    "two runs of one batch gave different outputs: weights were not fitted to what the compressed layers before them "
    "give, nor repaired, as both compare runs"
)
_RANDOM = "outputs depend on random numbers: networks were compared at equal ones"


@dataclass(frozen=True)
class Prepared:
    """model: the copy. steps: those that make sense with it. folded: whether norms were. warnings: of it as a whole."""

    model: nn.Module
    steps: Steps
    folded: bool
    warnings: tuple[str, ...]


def prepare(model: nn.Module, inputs: Inputs, steps: Steps) -> Prepared:
    """A copy to work on. Raises BadInput: no batches, a model that cannot be copied, a batch that it cannot take."""
    first = inputs.first
    work = copy_of(model)
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in work.modules())
    if steps.fold and norms:
        fold_in_place(work, inputs.batches, inputs.forward)
    once, again, otherwise = _runs(work, first, inputs)
    warnings = []
    if not nearly_equal(again, once):
        warnings, steps = [_UNSTEADY], replace(steps, stages=0, repair=False)
    elif not nearly_equal(otherwise, once):
        warnings = [_RANDOM]
    return Prepared(work, steps, steps.fold and norms, tuple(warnings))


def _runs(model: nn.Module, batch: Any, inputs: Inputs) -> list[Tensor]:
    """The outputs of one batch, twice with the same random numbers and once with others."""
    with as_deployed(model):
        return [call(model, batch, inputs.forward, seed=seed) for seed in (0, 0, 1)]


def warn(notes: dict[str, Any], warnings: Iterable[str]) -> None:
    """Add to the notes of a file what a user should know of it as a whole."""
    told = "; ".join(warnings)
    if told:
        before = notes.setdefault("warnings", {})
        before[WHOLE] = f"{before[WHOLE]}; {told}" if WHOLE in before else told
