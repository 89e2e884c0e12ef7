"""How fast networks answer, and how much memory their weights take, side by side."""

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.network.running.batches import each_tensor, first_of, samples_in
from waterfill.network.running.forward import Forward, call, result_of
from waterfill.network.running.state import same_draws, unchanged

_ROUNDS, _LEAST = 25, 5
_SECONDS = 2.0  # for one network at one size, once it has run so often as the least


@dataclass(frozen=True)
class Latency:
    """How long a network takes for so many inputs at once.

    Attributes:
        name: of the network.
        inputs: how many at once.
        milliseconds: median of the runs.
        spread: quartiles of the runs, milliseconds.
        speedup: how many times as fast as the first of the networks, by the medians.
        memory: bytes of its parameters and buffers, shared ones once.
    """

    name: str
    inputs: int
    milliseconds: float
    spread: tuple[float, float]
    speedup: float
    memory: int


def speed(
    models: Mapping[str, nn.Module],
    batches: Iterable[Any],
    sizes: Sequence[int] = (1,),
    *,
    forward: Forward | None = None,
) -> list[Latency]:
    """Time networks on the same inputs, turn by turn, so that what else the machine does meets all of them alike.

    Args:
        models: by name; speedups are over the first.
        batches: as for `compress`; the first one is cut to the sizes.
        sizes: numbers of inputs at once.
        forward: as for `compress`.

    Returns:
        A latency for each network at each size.

    Raises:
        BadInput: no batches, or fewer inputs in the first than a size asks for.

    Example:
        >>> for row in runtime.speed({"float32": net, "packed": quick}, inputs.split(32), sizes=(1, 32)):
        ...     print(row.name, row.inputs, row.milliseconds, row.speedup)
    """
    batch = next(iter(batches), None)
    if batch is None or not models:
        raise BadInput("there is nothing to time: give networks, and a batch of inputs at least")
    most = samples_in(batch)
    if max(sizes) > max(1, most) or min(sizes) < 1:
        raise BadInput(f"sizes={tuple(sizes)}: the first batch has {most} inputs; sizes are from 1 to that")
    made = []
    for size in sizes:
        given = first_of(batch, size)
        for model in models.values():
            call(model, given, forward)  # which says what is wrong with a batch
        times = {name: [_seconds(model, given, forward)] for name, model in models.items()}  # and warmed up
        began = time.perf_counter()
        for round_ in range(_ROUNDS):
            if round_ >= _LEAST and time.perf_counter() - began > _SECONDS * len(models):
                break
            for name, model in models.items():
                times[name].append(_seconds(model, given, forward))
        medians = {name: statistics.median(seen[1:]) for name, seen in times.items()}
        base = medians[next(iter(models))]
        for name, seen in times.items():
            low, _, high = statistics.quantiles(seen[1:], n=4)
            numbers = (1e3 * medians[name], (1e3 * low, 1e3 * high), base / medians[name])
            made.append(Latency(name, size, *numbers, memory_of(models[name])))
    return made


def memory_of(model: nn.Module) -> int:
    """Bytes of the parameters and buffers of a network, shared ones once."""
    tensors = {value.data_ptr(): value for value in (*model.parameters(), *model.buffers()) if value.numel()}
    return sum(value.numel() * value.element_size() for value in tensors.values())


@torch.inference_mode()
def _seconds(model: nn.Module, batch: Any, forward: Forward | None) -> float:
    """Seconds of the model alone: not of keeping its buffers and random numbers as they are."""
    own = each_tensor(batch, Tensor.clone)
    with unchanged(model), same_draws(batch):
        began = time.perf_counter()
        result_of(model, own, forward)
        return time.perf_counter() - began
