"""What it takes to know the channels of a kind of layer, and to take some of them out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

IN, OUT = "in", "out"
"""The two sides of a layer: the channels of its inputs, and those of its outputs."""


@dataclass(frozen=True)
class Axis:
    """A dimension of a tensor of a layer that runs over channels of one side.

    side: whose channels. blocks: how often they come one after another, as for the gates of a recurrent layer. reads:
    whether the entries of a channel are what is multiplied with it, not what makes it.
    """

    side: str
    blocks: int = 1
    reads: bool = False


Axes = tuple["Axis | None", ...]


class Kind(ABC):
    """A kind of layer, its channels counted along one dimension of its input and of its output.

    through: the channels of outputs are those of inputs, one by one (norms). state: it returns its final state too.
    """

    through: ClassVar[bool] = False
    state: ClassVar[bool] = False

    @abstractmethod
    def fits(self, layer: nn.Module) -> bool:
        """Whether a layer is of this kind, and its tensors are what the kind says."""

    @abstractmethod
    def sizes(self, layer: nn.Module) -> tuple[int, int]:
        """Channels of inputs and of outputs."""

    @abstractmethod
    def axes(self, layer: nn.Module) -> dict[str, Axes]:
        """For each tensor that runs over channels, by its name in the layer, what its dimensions run over."""

    @abstractmethod
    def attributes(self, layer: nn.Module, sizes: tuple[int, int]) -> dict[str, Any]:
        """The attributes that say how many channels there are, for other numbers of inputs and outputs."""

    @abstractmethod
    def input_dim(self, layer: nn.Module, x: Tensor) -> int:
        """The dimension of an input that runs over channels."""

    def output_dim(self, layer: nn.Module, y: Tensor) -> int:
        """The dimension of an output that runs over channels."""
        return self.input_dim(layer, y)

    def settle(self, layer: nn.Module) -> None:  # noqa: B027 - most kinds have nothing to do
        """Let a layer know that its tensors are others."""

    def bound(self, layer: nn.Module) -> int:
        """In how many groups the channels of both sides go together: those of a grouped convolution; 0 for none."""
        return 0

    def products(self, layer: nn.Module, sizes: tuple[int, int]) -> int:
        """Multiplications for one place of the output (of the input of a transposed convolution), for these sizes."""
        return 0

    def places(self, layer: nn.Module, x: Tensor, y: Tensor) -> int:
        """How often `products` are made in a call."""
        dim = self.output_dim(layer, y)
        return y.numel() // max(1, y.shape[dim])


@torch.no_grad()
def keep(layer: nn.Module, kind: Kind, kept: Mapping[str, Tensor]) -> None:
    """Take channels out of a layer, in place; kept: by side, which stay (int64, in order)."""
    before = dict(zip((IN, OUT), kind.sizes(layer), strict=True))
    for name, axes in kind.axes(layer).items():
        value = tensor_of(layer, name)
        if value is not None:
            replace_tensor(layer, name, sliced(value, axes, before, kept))
    sizes = {side: len(kept[side]) if side in kept else size for side, size in before.items()}
    for name, number in kind.attributes(layer, (sizes[IN], sizes[OUT])).items():
        setattr(layer, name, number)
    kind.settle(layer)


def sliced(value: Tensor, axes: Axes, before: Mapping[str, int], kept: Mapping[str, Tensor]) -> Tensor:
    """A tensor without the channels that are not kept, in the order in memory that it has."""
    whole = value
    for dim, axis in enumerate(axes):
        if axis is not None and axis.side in kept:
            value = value.index_select(dim, entries(axis, kept[axis.side], before[axis.side]).to(value.device))
    return as_ordered(value, whole)


def as_ordered(value: Tensor, whole: Tensor) -> Tensor:
    """A tensor with channels last in memory where another one has them so."""
    for dims, order in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if whole.ndim == dims and whole.is_contiguous(memory_format=order) and not whole.is_contiguous():
            return value.contiguous(memory_format=order)
    return value


def entries(axis: Axis, channels: Tensor, count: int) -> Tensor:
    """The indices along an axis that belong to some of `count` channels, in order."""
    starts = torch.arange(axis.blocks, dtype=torch.int64, device="cpu") * count
    return (starts[:, None] + channels).reshape(-1)


def tensor_of(layer: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer of a layer by its name; None where it has none."""
    value = layer._parameters.get(name)
    return layer._buffers.get(name) if value is None else value


def replace_tensor(layer: nn.Module, name: str, value: Tensor) -> None:
    """Put another tensor in the place of a parameter or buffer."""
    before = layer._parameters.get(name)
    if before is None:
        layer._buffers[name] = value.detach().clone()
    else:
        layer._parameters[name] = nn.Parameter(value.detach().clone(), requires_grad=before.requires_grad)


def spread(number: int, of: int, size: int) -> int:
    """`number` scaled by size / of: groups that go as their channels go. At least 1."""
    return max(1, number * size // max(1, of))


def positions(kernel: Any) -> int:
    """The number of positions of a kernel."""
    return math.prod(kernel)
