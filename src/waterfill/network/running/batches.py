"""Batches: the tensors in them, their samples, and how some are held out."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from waterfill.errors import BadInput


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch with every tensor in it changed; tuples, lists and dicts are looked into, all else stays.

    Of a packed sequence only its values are changed, not the batch sizes and orders.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: each_tensor(item, change) for key, item in value.items()}
    if isinstance(value, PackedSequence):
        return PackedSequence(change(value.data), *value[1:])
    plain = type(value) in (tuple, list) or hasattr(value, "_make")
    return like(value, [each_tensor(item, change) for item in value]) if plain else value


def like(value: Any, items: Sequence[Any]) -> Any:
    """A tuple (a named one too) or a list as `value` is one, of other items."""
    return type(value)._make(items) if hasattr(value, "_make") else type(value)(items)


def are_arguments(batch: Any) -> bool:
    """Whether a batch is several arguments, by position: a packed sequence is a tuple too, but one argument."""
    return isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence)


def count_of(batches: Any) -> int | None:
    """How many batches there are; None where that is not known: a loader of streamed data has a length that raises."""
    try:
        return len(batches)
    except (TypeError, NotImplementedError, AttributeError):
        return None


def samples_in(batch: Any) -> int:
    """Inputs in a batch: the first dimension of its first tensor, or the sequences packed in it; 0 if it has none."""
    packed = next((item for item in (batch, *_items(batch)) if isinstance(item, PackedSequence | Tensor)), None)
    if isinstance(packed, PackedSequence):
        return int(packed.batch_sizes[0])
    tensor = tensor_in(batch)
    return tensor.shape[0] if tensor is not None and tensor.ndim else 0


def _items(batch: Any) -> Sequence[Any]:
    return list(batch.values()) if isinstance(batch, Mapping) else batch if are_arguments(batch) else ()


def output_of(result: Any) -> Tensor:
    """The output tensor of what a model returned. Raises BadInput if there is none."""
    output = tensor_in(result)
    if output is not None and not isinstance(result, Tensor) and not _answers(output):
        real = [value for value in tensors_in(result) if value.is_floating_point()]
        output = next((value for value in real if _answers(value)), real[0] if real else output)
    if output is None:
        raise BadInput(f"the model returned {type(result).__name__} without a tensor; give forward=, which returns one")
    return output


def _answers(value: Tensor) -> bool:
    """Whether a tensor may be the outputs: real numbers, and not a single one, such as a loss."""
    return value.is_floating_point() and value.ndim > 0


def tensor_in(result: Any) -> Tensor | None:
    """A tensor is itself; else its `logits`, else the first tensor in it."""
    logits = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    return logits if isinstance(logits, Tensor) else next(tensors_in(result), None)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, in order: in dicts, sequences and dataclasses within it too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for item in value:
            yield from tensors_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            yield from tensors_in(getattr(value, item.name, None))


def never(outputs: Tensor) -> Tensor:
    """Which outputs are masked (bool): minus infinity, or close to the least number of their type."""
    return outputs < torch.finfo(outputs.dtype).min / 2


def any_never(outputs: Tensor) -> bool:
    """Whether any output is masked (`never`), in one pass and without a copy."""
    return outputs.numel() > 0 and bool(never(outputs.detach().amin()))


def is_plain(value: Tensor) -> bool:
    """Whether a tensor is an array of numbers in memory: not nested, sparse, quantized or without values."""
    return value.layout == torch.strided and not value.is_nested and not value.is_quantized and not value.is_meta


def _finite(outputs: Tensor) -> Tensor:
    if not outputs.is_floating_point():
        raise BadInput(
            f"the model's outputs are {outputs.dtype}, not real numbers; give forward=, which returns logits"
        )
    if math.isfinite(float(outputs.detach().sum())):  # then all are, and one pass is enough
        return outputs
    bad = int((outputs.isnan() | outputs.isposinf()).sum())
    if bad or bool(outputs.numel() and outputs.isneginf().all()):
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
    if isinstance(batch, PackedSequence):
        return f"{samples_in(batch)} packed sequences"
    if isinstance(batch, tuple | list):
        return " and ".join(map(shapes, batch)) or "nothing"
    return type(batch).__name__


def check_batches(model: Any, batches: Any) -> None:
    """Raise BadInput unless the model is a module, and the batches something that can be gone through."""
    if not isinstance(model, nn.Module):
        raise BadInput(
            f"the model is a {type(model).__name__}; give the torch.nn.Module, its weights loaded: it is run"
        )
    if isinstance(batches, Tensor | Mapping | str | nn.Module) or not isinstance(batches, Iterable | Sequence):
        raise BadInput(
            f"batches are a sequence of inputs; these are of type {type(batches).__name__}; "
            "one batch alone is [batch], many inputs are inputs.split(32)"
        )


def spread(batches: Iterable[Any], most: int) -> Iterator[Any]:
    """At most about so many of the batches, evenly from first to last; twice as many where their number is unknown."""
    count = count_of(batches)
    if count is not None:
        return islice(batches, 0, None, max(1, count // most))
    kept, step = list[Any](), 1
    for number, batch in enumerate(batches):
        if number % step == 0:
            kept.append(batch)
        if len(kept) > 2 * most:
            kept, step = kept[::2], 2 * step
    return iter(kept)


def few_enough(batches: Sequence[Any], outputs: Tensor, entries: int) -> list[Any]:
    """Some of the batches, spread evenly, two at least, whose outputs have at most so many entries in all.

    outputs: those of one batch. The rows of a few batches judge a network with very many outputs well enough.
    """
    most = max(2, entries // max(1, outputs.numel()))
    return [batches[i * len(batches) // most] for i in range(most)] if most < len(batches) else list(batches)


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
        sizes = [1 if _whole(batch) else samples_in(batch) or 1 for batch in fitting]
        cuts = [max(1, min(size - 1, round(size * (1 - holdout)))) for size in sizes]
        pairs = list(zip(fitting, sizes, cuts, strict=True))
        held = [_slice(batch, slice(cut, None), size) for batch, size, cut in pairs if cut < size]
        fitting = [_slice(batch, slice(0, cut), size) for batch, size, cut in pairs]
        if not held and len(fitting) > 1:
            fitting, held = fitting[:-1], fitting[-1:]
    if not fitting or not held:
        raise BadInput("two inputs at least are needed: some to fit on and others to decide on")
    return fitting, held


def first_of(batch: Any, count: int) -> Any:
    """The first so many inputs of a batch; the whole of one that cannot be cut into rows."""
    return batch if _whole(batch) else _slice(batch, slice(0, count), samples_in(batch))


def _whole(batch: Any) -> bool:
    """Whether a batch cannot be cut into rows: packed sequences are not."""
    return any(isinstance(item, PackedSequence) for item in (batch, *_items(batch)))


def _slice(batch: Any, rows: slice, size: int) -> Any:
    """Some of the inputs of a batch; what is no tensor of `size` rows stays."""
    if isinstance(batch, Tensor):
        return batch[rows] if batch.ndim and batch.shape[0] == size else batch
    if isinstance(batch, Mapping):
        return {key: _slice(value, rows, size) for key, value in batch.items()}
    return like(batch, [_slice(value, rows, size) for value in batch]) if are_arguments(batch) else batch
