"""Modules that a network no longer needs: `nn.Identity` in their place, in the model and in the note of its sizes."""

from typing import Any

import torch
from torch import nn

from waterfill.arithmetic import by_own_arithmetic
from waterfill.errors import BadInput
from waterfill.network.batch_norm import fold_in_place, folds_between, nearly_equal
from waterfill.network.channels.sizes import (
    add_bias,
    kind_of,
    merged,
    note_sizes,
    noted_sizes,
    put_in_place,
    sizes_between,
)
from waterfill.network.running.forward import Forward, call, copy_of
from waterfill.storage.folds import Fold


@by_own_arithmetic
@torch.no_grad()
def fold_norms(model: nn.Module, *batches: Any, forward: Forward | None = None) -> nn.Module:
    """A copy of a network, in evaluation mode, whose batch norms went into the layers that feed them: fewer calls.

    The function is the same but for rounding. Layers get a bias where they had none, and `nn.Identity` stands where a
    norm was, so the module stays one of its class: files of it hold what went, and loading into a new instance of the
    class takes the same out of it. Fold after any training: norms help a network to learn.

    Args:
        model: a trained network; it is not changed.
        batches: a few inputs: which norm takes the outputs of which layer is found by running them.
        forward: (model, batch) -> outputs, where a batch is not simply the arguments.

    Raises:
        BadInput: no batches, or one that the model cannot take.

    Example:
        >>> quick = waterfill.channels.fold_norms(pruned.model, inputs[:2])
        >>> quick = quick.to(memory_format=torch.channels_last)  # often faster still for convolutions on a processor
    """
    if not batches:
        raise BadInput("there are no batches, and by running some it is found which norm follows which layer")
    original, folded = copy_of(model).eval(), copy_of(model).eval()
    fold_in_place(folded, batches, forward)
    folds = [fold for fold in folds_between(original, folded) if kind_of(folded.get_submodule(fold.layer)) is not None]
    expected = [call(original, batch, forward) for batch in batches]

    def alike() -> bool:
        try:
            found = [call(folded, batch, forward) for batch in batches]
        except BadInput:  # the code asks the norm for what nn.Identity has not
            return False
        return all(map(nearly_equal, found, expected))

    norms = {fold: _without(folded, fold) for fold in folds}
    if not alike():
        for fold, norm in norms.items():
            put_in_place(folded, fold.norm, norm)
            _shift(folded, fold, norm, -1)
        for fold, norm in norms.items():
            _without(folded, fold)
            if not alike():
                put_in_place(folded, fold.norm, norm)
                _shift(folded, fold, norm, -1)
    note_sizes(folded, merged(noted_sizes(original), sizes_between(original, folded)))
    return folded


def take_out(model: nn.Module, name: str) -> nn.Module:
    """Put `nn.Identity` wherever a model holds a module; the module."""
    return put_in_place(model, name, nn.Identity())


def _without(model: nn.Module, fold: Fold) -> nn.Module:
    """Take a folded norm out, what it adds in the bias of its layer; the norm."""
    norm = take_out(model, fold.norm)
    _shift(model, fold, norm, 1)
    return norm


def _shift(model: nn.Module, fold: Fold, norm: Any, sign: int) -> None:
    """Add what a folded norm adds to the bias of its layer, or take it away again."""
    layer: Any = model.get_submodule(fold.layer)
    kind = kind_of(layer)
    assert kind is not None
    add_bias(layer, kind)
    shift = -norm.running_mean if norm.bias is None else norm.bias - norm.running_mean
    layer.bias.add_(sign * shift.to(layer.bias.dtype))
