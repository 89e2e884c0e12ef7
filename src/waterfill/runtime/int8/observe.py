"""What goes into layers while a network runs: the range of each channel, and some of the input vectors."""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.network.running.batches import tensor_in
from waterfill.network.running.forward import Forward, as_deployed, call

_ENTRIES = 1 << 18
"""Of input vectors that are kept of a layer, about."""
_LEAST = 32
"""Vectors that are kept, whatever their length, of all batches."""


@dataclass
class Seen:
    """Inputs of one layer. shape, strides: of the last batch. low, high: of each channel. rows: vectors that were kept,
    float32 on a CPU, one by one [n, channels]. source: the layer that has read the very same tensors first, in every
    batch; "" where there are several."""

    channel: int
    source: str | None = None
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    low: Tensor | None = None
    high: Tensor | None = None
    kept: list[Tensor] = field(default_factory=list)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator("cpu").manual_seed(0))

    def read_by(self, name: str) -> None:
        """Note which layer was the first to read a tensor."""
        self.source = name if self.source in (None, name) else ""

    def add(self, x: Tensor, share: float) -> None:
        """Take in a batch. channel is the dimension of the channels, counted from the end. share: of the batches."""
        self.shape, self.strides, self.dtype = tuple(x.shape), x.stride(), x.dtype
        flat = x.detach().movedim(self.channel, -1).reshape(-1, x.shape[self.channel])
        if not len(flat):
            return
        low, high = (value.float().cpu() for value in flat.aminmax(dim=0))
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        most = max(1, int(share * max(_LEAST, _ENTRIES // flat.shape[1])))
        size = (min(most, len(flat)),)
        which = torch.randint(len(flat), size, generator=self.generator, dtype=torch.int64, device="cpu")
        self.kept.append(flat[which.to(flat.device)].float().cpu())

    @property
    def rows(self) -> Tensor:
        return torch.cat(self.kept)


@contextmanager
def watched(layers: Mapping[str, tuple[nn.Module, Any]], take: Any) -> Iterator[None]:
    """A block in which take(seen, x) is called for the input of every call of the layers."""
    hooks = []
    try:
        for layer, own in layers.values():

            def before(_: nn.Module, given: tuple[Any, ...], own: Any = own) -> None:
                x = tensor_in(given)
                if x is not None:
                    take(own, x)

            hooks.append(layer.register_forward_pre_hook(before))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def observe(
    model: nn.Module, layers: Mapping[str, tuple[nn.Module, int]], batches: Sequence[Any], forward: Forward | None
) -> dict[str, Seen]:
    """Run the batches. layers: by name, each with the dimension of its channels. Raises BadInput for inputs of a layer
    that are not finite."""
    seen = {name: Seen(channel) for name, (_, channel) in layers.items()}
    own = {name: (layer, (name, seen[name])) for name, (layer, _) in layers.items()}
    with as_deployed(model), watched(own, _Taking(1 / len(batches))):
        for batch in batches:
            call(model, batch, forward)
    for name, each in seen.items():
        if each.low is not None and each.high is not None and not bool((each.high - each.low).isfinite().all()):
            raise BadInput(f"inputs of {name!r} are NaN or infinite for the calibration inputs: no range can be found")
    return seen


@dataclass
class _Taking:
    """Takes in what layers get. share: of the batches. readers: by tensor, the first layer that has got it."""

    share: float
    readers: "weakref.WeakValueDictionary[int, Tensor]" = field(default_factory=weakref.WeakValueDictionary)
    names: dict[int, str] = field(default_factory=dict)

    def __call__(self, own: tuple[str, Seen], x: Tensor) -> None:
        name, seen = own
        if self.readers.get(id(x)) is not x:
            self.readers[id(x)], self.names[id(x)] = x, name
        seen.read_by(self.names[id(x)])
        seen.add(x, self.share)
