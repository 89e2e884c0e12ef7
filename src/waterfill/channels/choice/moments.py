"""Means and covariances of the columns that layers multiply with, seen in runs of a network.

Columns are float32 and their sums are taken around the mean of the first ones: where a mean is far larger than what
varies around it, nothing of the covariance would be left otherwise.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from waterfill.arithmetic import own_arithmetic
from waterfill.channels.graph.network import Layer, Network, hooks, run
from waterfill.errors import BadInput
from waterfill.network.channels.layers import LinearKind
from waterfill.network.running.batches import count_of
from waterfill.network.tracing.im2col import vectors

_LEAST, _EACH = 1024, 32
"""Samples of columns: at least so many of a call, and for each column so many of all batches."""
_BATCHES = 8  # where their number is not known
_TRIES, _TINY = 8, 1e-30
See = Callable[[str, int, Tensor, "Tensor | None"], None]
"""(name of a layer, how often it was called before, columns [cols, count], what stands beside [channels, count])."""


class _Stop(Exception):
    """Ends a run once everything was seen."""


@dataclass
class Moments:
    """Sums over columns less an origin: count, first and second moments.

    The second ones are [cols, cols], or, where there are too many columns, their diagonal. origin: [cols, 1] (float32).
    """

    first: Tensor
    second: Tensor
    count: int = 0
    origin: Tensor | None = None

    @classmethod
    def of(cls, cols: int, most: int) -> "Moments":
        shape = (cols, cols) if cols <= most else (cols,)
        first, second = (torch.zeros(size, dtype=torch.float64, device="cpu") for size in ((cols,), shape))
        return cls(first, second)

    def add(self, columns: Tensor) -> Tensor:
        """Take columns in [cols, count]; they are returned less the origin."""
        if self.origin is None:
            self.origin = columns.mean(1, keepdim=True) if columns.shape[1] else torch.zeros_like(columns[:, :1])
        near = columns - self.origin
        self.count += near.shape[1]
        self.first += near.sum(1).cpu().double()
        self.second += (near.square().sum(1) if self.second.ndim == 1 else near @ near.T).cpu().double()
        return near

    @property
    def drift(self) -> Tensor:
        """The mean less the origin, [cols]."""
        return self.first / max(1, self.count)

    @property
    def mean(self) -> Tensor:
        return self.drift if self.origin is None else self.drift + self.origin[:, 0].cpu().double()

    @property
    def covariance(self) -> Tensor:
        """Of columns, [cols, cols], or variances, [cols]."""
        drift = self.drift
        if self.second.ndim == 1:
            return (self.second / max(1, self.count) - drift.square()).clamp_min(0)
        return self.second / max(1, self.count) - torch.outer(drift, drift)

    @property
    def energy(self) -> float:
        """The mean square of a column."""
        covariance = self.covariance
        variances = covariance if covariance.ndim == 1 else covariance.diagonal()
        return max(float(variances.sum() + self.mean.square().sum()), 1e-30)


def damped_factor(second: Tensor, damping: float) -> Tensor:
    """The Cholesky factor of second moments [cols, cols], with a share of their mean added to their diagonal, and more
    of it where rounding has left them without a factor. Raises BadInput for infinite ones."""
    scale = float(second.diagonal().mean())
    for power in range(_TRIES):
        damped = second.clone()
        damped.diagonal().add_(damping * 10**power * scale + _TINY)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed) and bool(factor.isfinite().all()):
            return factor
    raise BadInput("inputs of a layer are too large to be squared in float32; look at the batches and their scale")


def input_moments(network: Network, layers: Sequence[Layer], most: int) -> dict[str, Moments]:
    """Moments of the columns of some layers over all batches; most: columns whose covariance is whole."""
    found: dict[str, Moments] = {}

    def see(name: str, _: int, columns: Tensor, stream: Tensor | None) -> None:
        if not bool(columns.sum().isfinite()):
            raise BadInput(f"the inputs at {name!r} are NaN or infinite; look at the batches and the layers before it")
        found.setdefault(name, Moments.of(len(columns), most)).add(columns)

    for number, batch in enumerate(network.inputs.batches):
        watch(network, layers, batch, number, see)
    return found


@dataclass(frozen=True)
class Sampler:
    """Chooses columns of a call of a layer, the same for two networks of the same inputs.

    number: of the batch. batches: how many there are. width: columns that the number of samples is chosen for; 0: those
    of the layer.
    """

    layer: Layer
    number: int
    call: int
    batches: int
    width: int = 0

    def columns(self, x: Tensor) -> Tensor:
        """What the layer multiplies with, of its input, [cols, count]."""
        assert isinstance(self.layer.kind, LinearKind)
        generator = self._generator()
        return self._some(self.layer.kind.columns(self.layer.module, x, generator, self.width).float(), generator)

    def beside(self, x: Tensor) -> Tensor:
        """Of a tensor with the places of the layer's outputs, the channels at the places of the columns, [channels,
        count]."""
        assert isinstance(self.layer.kind, LinearKind)
        rows, generator = x.movedim(self.layer.kind.output_dim(self.layer.module, x), -1), self._generator()
        return self._some(vectors(rows, generator, self._width)[0], generator)

    @property
    def _width(self) -> int:
        assert isinstance(self.layer.kind, LinearKind)
        return self.width or int(self.layer.kind.matrix(self.layer.module).shape[1])

    def _generator(self) -> torch.Generator:
        seed = (self.number * 1009 + crc32(self.layer.name.encode())) * 1009 + self.call
        return torch.Generator("cpu").manual_seed(seed)

    def _some(self, columns: Tensor, generator: torch.Generator) -> Tensor:
        most = max(_LEAST, _EACH * self._width // self.batches)
        if columns.shape[1] <= most:
            return columns
        order = torch.randperm(columns.shape[1], generator=generator, dtype=torch.int64, device="cpu")
        return columns[:, order[:most].to(columns.device)]


def watch(  # noqa: PLR0913 - what is run, on what, and what is seen of it
    network: Network,
    layers: Iterable[Layer],
    batch: Any,
    number: int,
    see: See,
    chosen_for: Callable[[str], int] = lambda name: 0,
    beside: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Run a batch until all calls of some layers were seen.

    number: of the batch, which the samples of columns depend on. chosen_for: by layer, as of `LinearKind.columns`.
    beside: by layer, a module whose input is seen too, at the places of the columns.
    """
    watched = {layer.name: layer for layer in layers}
    batches = count_of(network.inputs.batches) or _BATCHES
    left = sum(layer.calls for layer in watched.values())
    calls = dict.fromkeys(watched, 0)
    streams = {beside[name]: torch.empty(0, dtype=torch.float32, device="cpu") for name in watched if name in beside}

    def before(name: str, x: Tensor) -> None:
        nonlocal left
        if name in streams:
            streams[name] = x.detach().clone()
        if name not in watched or calls[name] == watched[name].calls:  # longer inputs may need more calls
            return
        with own_arithmetic():
            sampler = Sampler(watched[name], number, calls[name], batches, chosen_for(name))
            stream = sampler.beside(streams[beside[name]]) if name in beside else None
            see(name, calls[name], sampler.columns(x.detach()), stream)
        calls[name] += 1
        left -= 1
        if left == 0:
            raise _Stop

    with suppress(_Stop), hooks(network.model, dict.fromkeys([*streams, *watched]), before):
        run(network.model, batch, network.inputs.forward)
