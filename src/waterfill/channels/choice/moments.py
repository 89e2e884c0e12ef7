"""Means and covariances of the columns that layers multiply with, seen in runs of a network."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from waterfill.arithmetic import own_arithmetic
from waterfill.channels.graph.network import Layer, Network, hooks, run
from waterfill.errors import BadInput
from waterfill.network.channels.layers import LinearKind
from waterfill.network.running.batches import count_of

_LEAST, _EACH = 1024, 32
"""Samples of columns: at least so many of a call, and for each column so many of all batches."""
_BATCHES = 8  # where their number is not known
See = Callable[[str, int, Tensor], None]
"""(name of a layer, how often it was called before, columns [cols, count])."""


class _Stop(Exception):
    """Ends a run once everything was seen."""


@dataclass
class Moments:
    """Sums over columns: count, first and second moments.

    The second ones are [cols, cols], or, where there are too many columns, their diagonal.
    """

    first: Tensor
    second: Tensor
    count: int = 0

    @classmethod
    def of(cls, cols: int, most: int) -> "Moments":
        shape = (cols, cols) if cols <= most else (cols,)
        first, second = (torch.zeros(size, dtype=torch.float64, device="cpu") for size in ((cols,), shape))
        return cls(first, second)

    def add(self, columns: Tensor) -> None:
        self.count += columns.shape[1]
        self.first += columns.sum(1).cpu().double()
        self.second += (columns.square().sum(1) if self.second.ndim == 1 else columns @ columns.T).cpu().double()

    @property
    def mean(self) -> Tensor:
        return self.first / max(1, self.count)

    @property
    def covariance(self) -> Tensor:
        """Of columns, [cols, cols], or variances, [cols]."""
        mean = self.mean
        if self.second.ndim == 1:
            return (self.second / max(1, self.count) - mean.square()).clamp_min(0)
        return self.second / max(1, self.count) - torch.outer(mean, mean)

    @property
    def energy(self) -> float:
        """The mean square of a column."""
        diagonal = self.second if self.second.ndim == 1 else self.second.diagonal()
        return max(float(diagonal.sum()) / max(1, self.count), 1e-30)


def input_moments(network: Network, layers: Sequence[Layer], most: int) -> dict[str, Moments]:
    """Moments of the columns of some layers over all batches; most: columns whose covariance is whole."""
    found: dict[str, Moments] = {}

    def see(name: str, _: int, columns: Tensor) -> None:
        if not bool(columns.sum().isfinite()):
            raise BadInput(f"the inputs at {name!r} are NaN or infinite; look at the batches and the layers before it")
        found.setdefault(name, Moments.of(len(columns), most)).add(columns)

    for number, batch in enumerate(network.inputs.batches):
        watch(network, layers, batch, number, see)
    return found


def watch(  # noqa: PLR0913 - what is run, on what, and what is seen of it
    network: Network,
    layers: Iterable[Layer],
    batch: Any,
    number: int,
    see: See,
    chosen_for: Callable[[str], int] = lambda name: 0,
) -> None:
    """Run a batch until all calls of some layers were seen.

    number: of the batch, which the samples of columns depend on. chosen_for: by layer, as of `LinearKind.columns`.
    """
    watched = {layer.name: layer for layer in layers}
    batches = count_of(network.inputs.batches) or _BATCHES
    left = sum(layer.calls for layer in watched.values())
    calls = dict.fromkeys(watched, 0)

    def before(name: str, x: Tensor) -> None:
        nonlocal left
        layer = watched[name]
        if calls[name] == layer.calls:  # longer inputs may need more, and two networks are to be compared
            return
        assert isinstance(layer.kind, LinearKind)
        generator = torch.Generator("cpu").manual_seed((number * 1009 + layer.number) * 1009 + calls[name])
        with own_arithmetic():
            columns = layer.kind.columns(layer.module, x.detach(), generator, chosen_for(name)).float()
            most = max(_LEAST, _EACH * (chosen_for(name) or len(columns)) // batches)
            if columns.shape[1] > most:
                order = torch.randperm(columns.shape[1], generator=generator, dtype=torch.int64, device="cpu")
                columns = columns[:, order[:most].to(columns.device)]
            see(name, calls[name], columns)
        calls[name] += 1
        left -= 1
        if left == 0:
            raise _Stop

    with suppress(_Stop), hooks(network.model, watched, before):
        run(network.model, batch, network.inputs.forward)
