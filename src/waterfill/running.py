"""A network run on batches as it is: how a batch becomes arguments, what of the result are the outputs, and how batches
are held out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.errors import BadInput

Forward = Callable[[nn.Module, Any], Any]
"""(model, batch) -> what the model says, where a batch is not simply its arguments."""


Hook = Callable[[str, nn.Module, tuple[Any, ...], Any], Any]
"""(name, layer, inputs, output) -> what takes the place of the output, unless it is None."""


def call(model: nn.Module, batch: Any, forward: Forward | None = None) -> Tensor:
    """The outputs for one batch: a tensor is the argument, a tuple or list the arguments, a dict those by keyword.

    Of a result that is no tensor the outputs are its `logits`, else its first tensor. Raises BadInput, the model's own
    error chained, for a batch that the model cannot take, and for outputs that hold NaN or infinities.
    """
    try:
        if forward is not None:
            result = forward(model, batch)
        elif isinstance(batch, Mapping):
            result = model(**batch)
        else:
            result = model(*batch) if isinstance(batch, tuple | list) else model(batch)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if "allocate memory" in str(error) or "out of memory" in str(error):
            raise
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"the model cannot take a batch of {shapes(batch)}: {said}") from error
    return _finite(output_of(result))


def output_of(result: Any) -> Tensor:
    """The output tensor of what a model returned. Raises BadInput if there is none."""
    found = tensor_in(result)
    if found is None:
        raise BadInput(f"the model returned {type(result).__name__} without a tensor; give forward=, which returns one")
    return found


def tensor_in(result: Any) -> Tensor | None:
    """A tensor is itself; else its `logits`, else the first tensor in it."""
    if isinstance(result, Tensor):
        return result
    logits = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    items = result.values() if isinstance(result, Mapping) else result if isinstance(result, Sequence) else ()
    return next((item for item in items if isinstance(item, Tensor)), None)


def _finite(outputs: Tensor) -> Tensor:
    if not outputs.is_floating_point():
        raise BadInput(
            f"the model's outputs are {outputs.dtype}, not real numbers; give forward=, which returns logits"
        )
    bad = outputs.numel() - int(torch.isfinite(outputs).sum())
    if bad:
        raise BadInput(
            f"{bad} of {outputs.numel()} outputs of a batch are NaN or infinite; "
            "look at the inputs first, then at the weights (more bits, another recipe)"
        )
    return outputs


def shapes(batch: Any) -> str:
    """A batch in words for messages: the shapes of its tensors."""
    if isinstance(batch, Tensor):
        return f"{list(batch.shape)} {str(batch.dtype).removeprefix('torch.')}"
    if isinstance(batch, Mapping):
        return ", ".join(f"{key}: {shapes(value)}" for key, value in batch.items()) or "nothing"
    if isinstance(batch, tuple | list):
        return " and ".join(map(shapes, batch)) or "nothing"
    return type(batch).__name__


@contextmanager
def as_deployed(*models: nn.Module) -> Iterator[None]:
    """The models in evaluation mode and without gradients; every submodule's own mode comes back after."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold parameters or statistics of their own, by name; the model itself only if it is one."""
    return {
        name: module
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))
    }


@contextmanager
def hooked(layers: Mapping[str, nn.Module], hook: Hook) -> Iterator[None]:
    """`hook(name, module, inputs, output)` after every call of these layers; gone after the block, come what may."""
    with ExitStack() as stack:
        for name, layer in layers.items():

            def after(module: nn.Module, inputs: tuple[Any, ...], output: Any, name: str = name) -> Any:
                return hook(name, module, inputs, output)

            stack.callback(layer.register_forward_hook(after).remove)
        yield


def split(batches: Iterable[Any], holdout: "float | Iterable[Any]") -> tuple[list[Any], list[Any]]:
    """Batches to fit on, and batches to decide on: every so many-th one, or, of few batches, a part of their rows.

    Raises BadInput if either would be empty.
    """
    fitting = list(batches)
    if not isinstance(holdout, int | float):
        held = list(holdout)
    elif not 0 < holdout < 1:
        raise BadInput(f"holdout={holdout}: give a share between 0 and 1, or the batches to hold out")
    elif len(fitting) >= 1 / holdout:
        marks = [int((i + 1) * holdout) > int(i * holdout) for i in range(len(fitting))]
        held = [batch for batch, mark in zip(fitting, marks, strict=True) if mark]
        fitting = [batch for batch, mark in zip(fitting, marks, strict=True) if not mark]
    else:
        sizes = [_rows(batch) for batch in fitting]
        cuts = [max(1, min(size - 1, round(size * (1 - holdout)))) for size in sizes]
        pairs = list(zip(fitting, sizes, cuts, strict=True))
        held = [_slice(batch, slice(cut, None), size) for batch, size, cut in pairs if cut < size]
        fitting = [_slice(batch, slice(0, cut), size) for batch, size, cut in pairs]
        if not held and len(fitting) > 1:
            fitting, held = fitting[:-1], fitting[-1:]
    if not fitting or not held:
        raise BadInput("two inputs at least are needed: some to fit on and others to decide on")
    return fitting, held


def _rows(batch: Any) -> int:
    """Inputs in a batch: the first dimension of its first tensor."""
    found = batch if isinstance(batch, Tensor) else tensor_in(batch)
    return found.shape[0] if found is not None and found.ndim else 1


def _slice(batch: Any, rows: slice, size: int) -> Any:
    """Some of the inputs of a batch; what is no tensor of `size` rows stays."""
    if isinstance(batch, Tensor):
        return batch[rows] if batch.ndim and batch.shape[0] == size else batch
    if isinstance(batch, Mapping):
        return {key: _slice(value, rows, size) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_slice(value, rows, size) for value in batch)
    return batch
