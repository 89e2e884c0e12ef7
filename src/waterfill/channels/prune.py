"""`prune_channels`: a network without the channels, neurons and heads that it needs least."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from waterfill.arithmetic import by_own_arithmetic
from waterfill.channels.choice.plan import CHANNELS, MACS, TIME
from waterfill.channels.options import Pruning
from waterfill.channels.result import Pruned
from waterfill.channels.to_speed import pruned_to_speed
from waterfill.channels.work import Work
from waterfill.errors import BadInput, BadRecipe
from waterfill.network.running.batches import samples_in, shapes, tensor_in
from waterfill.network.running.forward import Forward, as_deployed, call
from waterfill.network.running.inputs import Inputs
from waterfill.network.running.wrapped import unwrapped
from waterfill.network.tensors import tensors_of
from waterfill.progress import shown

_DEFAULT = Pruning()


@by_own_arithmetic
@torch.inference_mode(False)
def prune_channels(  # noqa: PLR0913 - budgets exclude one another, and each deserves its own word
    model: nn.Module,
    batches: Iterable[Any],
    *,
    macs: float | None = None,
    speedup: float | None = None,
    keep: float | None = None,
    forward: Forward | None = None,
    how: Pruning = _DEFAULT,
) -> Pruned:
    """Remove channels, neurons and heads, so that a network is smaller and faster in plain PyTorch.

    What depends on what is found by running the network, whatever code it is made of. What goes is chosen by what its
    loss does to the outputs, after all that stays has made up for it, for each multiplication that it saves; where a
    speedup is wanted for each microsecond, as layers of fewer channels were timed, and whole blocks go too.

    Args:
        model: a trained network; it is not changed.
        batches: a few hundred inputs without labels, gone through several times, as for `compress`.
        macs: the share of multiplications that may be left, such as 0.5.
        speedup: how many times as fast it is to be, measured here and now with `how.batch` inputs at once.
        keep: the share of all removable channels that may be left, whatever they cost to compute.
        forward: (model, batch) -> outputs, where a batch is not simply the arguments.
        how: rounds, refit, and more.

    Returns:
        The smaller network, with a table of what went and what could not, and why.

    Raises:
        BadInput: no inputs, inputs that the model cannot take, weights that are NaN.
        BadRecipe: not one budget but none or several, or one out of range.
        BudgetError: a budget that cannot be met; the message says what can.

    Example:
        >>> pruned = waterfill.prune_channels(model, inputs.split(32), macs=0.5)
        >>> print(pruned.text())
        >>> small = waterfill.compress(pruned.model, inputs.split(32), bits=4)
    """
    model = unwrapped(model)
    _check_budget(macs, speedup, keep)
    _check_inputs(model, batches, forward, how.batch if speedup is not None else 1)
    inputs = Inputs(list(batches), forward)  # the same in every pass, where a loader would shuffle them
    with shown(how.progress) as report:
        how = replace(how, progress=report or False)
        work = Work.begin(model, inputs, how, CHANNELS if keep is not None else MACS if speedup is None else TIME)
        if speedup is not None:
            return pruned_to_speed(work, speedup)
        return work.pruned(macs if macs is not None else keep or 1.0)


def _check_budget(macs: float | None, speedup: float | None, keep: float | None) -> None:
    given = {"macs": macs, "speedup": speedup, "keep": keep}
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        raise BadRecipe(f"one budget is wanted, of macs, speedup and keep; {len(named)} are given: {named or 'none'}")
    name, value = next(iter(named.items()))
    factor = name == "speedup"
    if not isinstance(value, int | float) or not (1 < value < math.inf if factor else 0 < value < 1):
        wanted = "how many times as fast, above 1" if factor else "the share that may be left, between 0 and 1"
        raise BadRecipe(f"{name}={value!r}: give {wanted}")


def _check_inputs(model: Any, batches: Any, forward: Forward | None, timed: int) -> None:
    """Raises BadInput for what cannot be worked on. timed: how many inputs at once."""
    if batches is None:
        raise BadInput("there are no inputs: what a channel is worth is measured on some, a few hundred without labels")
    inputs = Inputs(batches, forward)
    inputs.check(model)
    tensors_of(model)  # which says what is lazy, on the meta device or no plain tensor
    for name, value in model.named_parameters():
        if value.is_floating_point() and not bool(torch.isfinite(value.detach()).all()):
            raise BadInput(f"{name!r} holds values that are NaN or infinite; load the trained weights first")
    first = inputs.first
    tensor = tensor_in(first)
    if tensor is not None and not tensor.numel():
        raise BadInput(f"the first batch holds no inputs, but {shapes(first)}; leave such batches out")
    with as_deployed(model):
        call(model, first, forward)
    if timed > max(1, samples_in(first)):
        raise BadInput(f"batch={timed} inputs at once are to be timed, and the first batch has {samples_in(first)}")
