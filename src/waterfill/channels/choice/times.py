"""How long layers take with fewer channels, measured: what a channel saves is time, not multiplications.

Each layer runs alone, at a few numbers of channels on either side, with so many inputs at once; layers alike are timed
once. Between these numbers times are interpolated. What no layer takes, as sums and what stands between, is a block's
own time less its layers', and stays as long as the block does.
"""

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.channels.graph.network import IN, OUT, Layer, Network, first_tensor, run
from waterfill.network.channels.kind import as_ordered, keep
from waterfill.network.running.batches import each_tensor, first_of
from waterfill.network.running.forward import copy_of

_STEP, _LEVELS, _FEW = 8, 4, 4
"""Numbers of channels that are timed are multiples of the first, at most so many on a side; but of the last or more, at
least two."""
_LEAST, _MOST, _SECONDS = 3, 25, 0.02
"""Runs of one layer, and for how long more than the least."""
_FALL = 1e-3
"""By which part at least fewer channels are taken to be faster."""
Call = tuple[Any, Any]
"""Arguments by position and by keyword."""
Grid = tuple[list[int], list[int], list[list[float]]]
"""Channels of inputs, of outputs, and the milliseconds of each pair."""


@dataclass(eq=False)
class Times:
    """Milliseconds of the layers of a network by their channels.

    calls: what the modules were called with, by name. batch: inputs at once.
    """

    network: Network
    batch: int
    _calls: dict[str, Call] = field(init=False)
    _grids: dict[tuple[Any, ...], Grid] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._calls = {}

    def watch(self, names: Iterable[str]) -> None:
        """Keep what modules are called with, in a run."""
        given = first_of(self.network.inputs.first, self.batch)
        for name, args in recorded(self.network, names, given).items():
            self._calls[name] = args

    def of(self, layer: Layer, sizes: tuple[int, int]) -> float:
        """Milliseconds of all calls of a layer in one run, were it of these sizes."""
        grid = self._grid(layer)
        return layer.calls * max(0.0, interpolated(grid, sizes))

    def module(self, name: str) -> float:
        """Milliseconds of a module as it is, of the network itself by the name ""."""
        return shortest(self.network.model.get_submodule(name), self._calls[name])

    def beside(self, inside: Mapping[str, float]) -> dict[str, float]:
        """What modules take beside their layers, the least of those alike. inside: milliseconds of these, by module."""
        own: dict[str, list[float]] = {}
        alike = {name: f"{self.network.model.get_submodule(name)!r} {self._shape(name)}" for name in inside}
        for name, key in alike.items():
            own.setdefault(key, []).append(max(0.0, self.module(name) - inside[name]))
        return {name: min(own[key]) for name, key in alike.items()}

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(first_tensor(self._calls[name]).shape)

    def _grid(self, layer: Layer) -> Grid:
        args = self._calls[layer.name]
        key = repr(layer.module), self._shape(layer.name)
        if key not in self._grids:
            self._grids[key] = measured(layer, args)
        return self._grids[key]


def recorded(network: Network, names: Iterable[str], given: Any) -> dict[str, Call]:
    """What modules are called with at first, in a run of a batch."""
    found: dict[str, Call] = {}
    handles = []
    for name in names:

        def see(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            found.setdefault(name, each_tensor((args, kwargs), Tensor.clone))

        module = network.model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(see, with_kwargs=True))
    try:
        run(network.model, given, network.inputs.forward)
    finally:
        for handle in handles:
            handle.remove()
    return found


def measured(layer: Layer, args: Call) -> Grid:
    """A layer timed with fewer channels on both sides, those of a layer that passes them through on one."""
    sizes = layer.kind.sizes(layer.module)
    tied = layer.kind.through or layer.kind.bound(layer.module) > 0
    ins, outs = ([*levels(size)] for size in sizes)
    each = [[0.0] * len(outs) for _ in ins]
    for i, one in enumerate(ins):
        for o, other in enumerate(outs):
            if tied and (sizes[0] == sizes[1]) and o != i:
                continue
            each[i][o] = _at(layer, args, (one, other))
    if tied and sizes[0] == sizes[1]:
        outs, each = [sizes[1]], [[each[i][i]] for i in range(len(ins))]
    return ins, outs, _rising(ins, outs, each)


def _rising(ins: list[int], outs: list[int], each: list[list[float]]) -> list[list[float]]:
    """Times that rise with the channels, as what a clock says of a layer with fewer may be more by chance."""
    made = [list(row) for row in each]
    for i in reversed(range(len(ins))):
        for o in reversed(range(len(outs))):
            more = [made[i + 1][o]] if i + 1 < len(ins) else []
            more += [made[i][o + 1]] if o + 1 < len(outs) else []
            made[i][o] = min([made[i][o], *((1 - _FALL) * value for value in more)])
    return made


def levels(size: int) -> list[int]:
    """The numbers of channels that are timed: up to the whole, by eights or further apart; of a few, also the half."""
    apart = max(_STEP, -(-size // (_LEVELS * _STEP)) * _STEP)
    few = list(range(apart, size, apart)) or [size // 2] * (size >= _FEW)
    return [*few, size]


def _at(layer: Layer, args: Call, sizes: tuple[int, int]) -> float:
    """Milliseconds of a copy of a layer with so many channels; those of the whole where it does not run so."""
    made: Any = copy_of(layer.module)
    was = layer.kind.sizes(layer.module)
    sides = {
        side: torch.arange(count, dtype=torch.int64, device="cpu")
        for side, count, whole in zip((IN, OUT), sizes, was, strict=True)
        if count < whole and whole
    }
    try:
        keep(made, layer.kind, {OUT: sides[OUT]} if layer.kind.through and sides else sides)
        return shortest(made, _cut(layer, args, sizes[0]))
    except (RuntimeError, ValueError):  # a layer of another forward, states of other sizes
        products = (layer.kind.products(layer.module, some) for some in (sizes, was))
        left, full = products
        return shortest(layer.module, args) * (left / full if full else sizes[1] / max(1, was[1]))


def _cut(layer: Layer, args: Call, count: int) -> Call:
    """What a layer is called with, with so many channels of its input."""
    whole = first_tensor(args)
    if not whole.is_floating_point():
        return args
    some = whole.narrow(layer.kind.input_dim(layer.module, whole), 0, count)
    some = as_ordered(some.contiguous(), whole)
    swapped: Call = each_tensor(args, lambda value: some if value is whole else value)
    return swapped


def interpolated(grid: Grid, sizes: tuple[int, int]) -> float:
    """Milliseconds at any sizes: linear between those that were timed on either side, and below the least."""
    ins, outs, each = grid
    rows = [_along(outs, row, sizes[1]) for row in each]
    return _along(ins, rows, sizes[0])


def _along(places: list[int], values: list[float], at: int) -> float:
    if len(places) == 1:
        return values[0]
    right = min(max(1, bisect_left(places, at)), len(places) - 1)
    low, high = places[right - 1], places[right]
    share = (at - low) / (high - low)
    return values[right - 1] + share * (values[right] - values[right - 1])


@torch.inference_mode()
def shortest(module: nn.Module, args: Call) -> float:
    """Milliseconds of the shortest of a few runs of a module."""
    device = first_tensor(args).device
    module(*args[0], **args[1])
    times: list[float] = []
    until = time.perf_counter() + _SECONDS
    while len(times) < _LEAST or (len(times) < _MOST and time.perf_counter() < until):
        began = _clock(device)
        module(*args[0], **args[1])
        times.append(_clock(device) - began)
    return 1e3 * min(times)


def _clock(device: torch.device) -> float:
    """Seconds: of the thread where it does all the work, so that what else the machine does counts for nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time() if alone else time.perf_counter()
