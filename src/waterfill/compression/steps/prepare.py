"""Prepares a copy of the caller's network, which itself is never run, with its batch norms folded.

Inputs or networks that cannot work raise here, before anything that takes long.
"""

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from waterfill.compression.options import Steps
from waterfill.network.batch_norm import fold_in_place, nearly_equal
from waterfill.network.running.forward import as_deployed, call, copy_of
from waterfill.network.running.inputs import Inputs
from waterfill.storage.remarks import RANDOM, UNSTEADY


@dataclass(frozen=True)
class Prepared:
    """model: the copy. steps: those that it allows. folded: whether norms were folded. remarks: words of
    `storage.remarks`."""

    model: nn.Module
    steps: Steps
    folded: bool
    remarks: tuple[str, ...]


def prepare(model: nn.Module, inputs: Inputs, steps: Steps, fixed: Container[str] = ()) -> Prepared:
    """A copy to work on; the tensors that `fixed` names stay as they are.

    Raises BadInput: no batches, a model that cannot be copied, a batch that it cannot take.
    """
    first = inputs.first
    work = copy_of(model)
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in work.modules())
    if steps.fold and norms:
        fold_in_place(work, inputs.batches, inputs.forward, fixed)
    once, again, otherwise = _runs(work, first, inputs)
    remarks = []
    if not nearly_equal(again, once):
        remarks, steps = [UNSTEADY], replace(steps, stages=0, repair=False)
    elif not nearly_equal(otherwise, once):
        remarks = [RANDOM]
    return Prepared(work, steps, steps.fold and norms, tuple(remarks))


def _runs(model: nn.Module, batch: Any, inputs: Inputs) -> list[Tensor]:
    """The outputs of one batch, twice with the same random numbers and once with others."""
    with as_deployed(model):
        return [call(model, batch, inputs.forward, seed=seed) for seed in (0, 0, 1)]
