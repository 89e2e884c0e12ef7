"""How fast networks answer, and how much memory they take, side by side."""

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.network.channels.macs import multiplications
from waterfill.network.running.batches import each_tensor, first_of, samples_in
from waterfill.network.running.forward import Forward, call, copy_of, result_of
from waterfill.network.running.state import same_draws, unchanged
from waterfill.runtime.measured.peak import most_allocated

_ROUNDS, _LEAST = 25, 5
_SECONDS = 2.0  # for one network at one size, once it has run so often as the least


@dataclass(frozen=True)
class Latency:
    """How long a network takes for so many inputs at once, and what it takes for that.

    Attributes:
        name: of the network.
        inputs: how many at once.
        milliseconds: median of the runs.
        spread: quartiles of the runs, milliseconds.
        speedup: how many times as fast as the first of the networks, by the medians.
        memory: bytes of its parameters and buffers, shared ones once.
        speedup_spread: quartiles of the speedup, each run over that of the first network beside it.
        peak: bytes of all these and of what a run allocates at its peak; None where PyTorch does not tell.
        macs: multiplications with weights for one input, as `prune_channels` counts them; of packed layers those of
            their parts. They say how much is computed, not how fast.
        macs_share: the same over that of the first network; None where that has none.
    """

    name: str
    inputs: int
    milliseconds: float
    spread: tuple[float, float]
    speedup: float
    memory: int
    speedup_spread: tuple[float, float] | None = None
    peak: int | None = None
    macs: int | None = None
    macs_share: float | None = None


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
        >>> nets = {"float32": net, "bfloat16": runtime.as_type(net, torch.bfloat16), "packed": quick}
        >>> for row in runtime.speed(nets, inputs.split(32), sizes=(1, 32)):
        ...     print(row.name, row.inputs, row.milliseconds, row.speedup, row.speedup_spread, row.peak)
    """
    batch = next(iter(batches), None)
    if batch is None or not models:
        raise BadInput("there is nothing to time: give networks, and a batch of inputs at least")
    most = samples_in(batch)
    if max(sizes) > max(1, most) or min(sizes) < 1:
        raise BadInput(f"sizes={tuple(sizes)}: the first batch has {most} inputs; sizes are from 1 to that")
    one, counts = first_of(batch, 1), dict[str, int]()
    for name, model in models.items():
        call(model, one, forward)  # which says what is wrong with a batch
        counts[name] = multiplications(model, one, forward)
    whole, made = counts[next(iter(models))], list[Latency]()
    for size in sizes:
        given = first_of(batch, size)
        times = _times(models, given, forward)
        for name, model in models.items():
            share = counts[name] / whole if whole else None
            costs = (memory_of(model), _peak(model, given, forward), counts[name], share)
            made.append(_latency(name, size, times, costs))
    return made


def as_type(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a network that computes in another type, to be timed beside it; real inputs are cast to that.

    Raises BadInput for a model that cannot be copied.
    """
    return _Cast(copy_of(model).to(dtype), dtype)


class _Cast(nn.Module):
    """A network whose real inputs are cast to a type."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = each_tensor((args, kwargs), lambda x: x.to(self.dtype) if x.is_floating_point() else x)
        return self.model(*args, **kwargs)


def _times(models: Mapping[str, nn.Module], given: Any, forward: Forward | None) -> dict[str, list[float]]:
    """Seconds of each run by the name of the network; of the same place in the lists stood side by side."""
    for model in models.values():
        call(model, given, forward)
    for model in models.values():  # warmed up
        _seconds(model, given, forward)
    times: dict[str, list[float]] = {name: [] for name in models}
    began = time.perf_counter()
    for round_ in range(_ROUNDS):
        if round_ >= _LEAST and time.perf_counter() - began > _SECONDS * len(models):
            break
        for name, model in models.items():
            times[name].append(_seconds(model, given, forward))
    return times


def _latency(
    name: str, size: int, times: Mapping[str, list[float]], costs: tuple[int, int | None, int, float | None]
) -> Latency:
    """The row of a network. costs: memory, peak, multiplications, and their share."""
    own, base = times[name], next(iter(times.values()))
    low, median, high = statistics.quantiles(own, n=4)
    slow, _, fast = statistics.quantiles([a / b for a, b in zip(base, own, strict=True)], n=4)
    memory, peak, macs, share = costs
    return Latency(
        *(name, size, 1e3 * median, (1e3 * low, 1e3 * high), statistics.median(base) / median, memory),
        *((slow, fast), None if peak is None else memory + peak, macs, share),
    )


def memory_of(model: nn.Module) -> int:
    """Bytes of the parameters and buffers of a network, shared ones once."""
    tensors = {value.data_ptr(): value for value in (*model.parameters(), *model.buffers()) if value.numel()}
    return sum(value.numel() * value.element_size() for value in tensors.values())


@torch.inference_mode()
def _seconds(model: nn.Module, batch: Any, forward: Forward | None) -> float:
    """Seconds of the model alone: not of keeping its buffers and random numbers as they are."""
    own, device = each_tensor(batch, Tensor.clone), _device_of(model)
    with unchanged(model), same_draws(batch):
        _settle(device)
        began = time.perf_counter()
        result_of(model, own, forward)
        _settle(device)
        return time.perf_counter() - began


@torch.inference_mode()
def _peak(model: nn.Module, batch: Any, forward: Forward | None) -> int | None:
    """Bytes that a run allocates at its peak, beside its weights and its inputs."""
    own = each_tensor(batch, Tensor.clone)
    with unchanged(model), same_draws(batch):
        return most_allocated(lambda: result_of(model, own, forward), _device_of(model))


def _device_of(model: nn.Module) -> torch.device:
    """The device of the first tensor of a network."""
    first = next((value for value in (*model.parameters(), *model.buffers())), None)
    return torch.device("cpu") if first is None else first.device


def _settle(device: torch.device) -> None:
    """Wait for what a device is still computing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
