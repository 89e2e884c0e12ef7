"""Convolutions that run from compressed weights: a block of channels is restored at a time.

Thin factors run as two convolutions: k x k to as many channels as the rank, then 1 x 1. Where all columns of an input
channel are zero, only the other channels are read.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.runtime import operators
from waterfill.runtime.layers.base import PackedLayer, shared
from waterfill.runtime.layers.geometry import Geometry, Rows
from waterfill.runtime.leaves import Term

_FEW = 16  # positions below which a 1 x 1 convolution is a product of vectors


class PackedConvolution(PackedLayer):
    """A convolution with `term` [out, in / groups * kernel], or a transposed one with [in, out / groups * kernel]."""

    bias: nn.Parameter | None
    channels: Tensor | None
    places: Tensor | None
    in_channels: int
    out_channels: int
    groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    padding_mode: str
    transposed: bool

    def __init__(self, term: Term, like: nn.modules.conv._ConvNd) -> None:
        super().__init__(like.weight.dtype)
        self.term = term
        self.register_parameter("bias", like.bias)  # type: ignore[arg-type]  # which is a parameter or None
        shared(self, like, ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"))
        shared(self, like, ("groups", "padding_mode", "transposed", "output_padding"))
        self._geometry = Geometry(self.kernel_size, self.stride, self.padding, self.dilation, self.groups)
        self._is_product = self._geometry.is_product
        self._shape = tuple(like.weight.shape)
        self._around: list[int] = getattr(like, "_reversed_padding_repeated_twice", [])
        self.register_buffer("channels", None)
        self.register_buffer("places", None)
        if term.of_columns and self.groups == 1 and not self.transposed:
            self._gather(term.of_columns[0])

    def _gather(self, kept: Tensor) -> None:
        """Note the input channels that are not zero, and the places of the columns that are kept among theirs."""
        size = self.term.cols // self.in_channels
        channels, which = torch.unique(kept // size, return_inverse=True)
        if len(channels) < self.in_channels:
            self.channels, self.places = channels, which * size + kept % size

    def terms(self) -> Iterator[Term]:
        yield self.term

    def multiplications(self, x: Tensor, y: Tensor) -> int:
        places = x.numel() // max(1, self.in_channels) if self.transposed else y.numel() // max(1, self.out_channels)
        return places * self.term.products

    @property
    def weight(self) -> Tensor:
        """The weight, restored anew each time: for code that asks for its type, its device or its values."""
        return self.term.restored().view(self._shape).to(self._like.dtype)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        dims = len(self.kernel_size)
        if x.dim() not in (dims + 1, dims + 2) or x.shape[-dims - 1] != self.in_channels:
            raise BadInput(
                f"inputs of shape {list(x.shape)} do not fit a packed convolution of {self.in_channels} channels with "
                f"{dims} dimensions; give [batch, channels, ...] or [channels, ...]"
            )
        self._check(x)
        given = x if x.dim() == dims + 2 else x.unsqueeze(0)
        made = self._transposed(given, output_size) if self.transposed else self._convolved(given)
        return made if x.dim() == dims + 2 else made.squeeze(0)

    def _convolved(self, x: Tensor) -> Tensor:
        geometry = self._geometry
        if self._is_product and operators.runs_here(x) and x.numel() < _FEW * self.in_channels:
            return self._multiplied(x)
        if self.padding_mode != "zeros":
            x, geometry = F.pad(x, self._around, mode=self.padding_mode), geometry.without_padding
        if self.channels is None or self.places is None or self.term.of_columns is None:
            return _of(self.term, x, geometry, self.bias)
        inner, places = self.term.of_columns[1], self.places
        cols = len(self.channels) * (self.term.cols // self.in_channels)

        def rows(term: Term) -> Rows:
            def restored(first: int, last: int) -> Tensor:
                block = term.block(first, last)
                whole = torch.zeros(len(block), cols, dtype=block.dtype, device=block.device)
                return whole.index_copy_(1, places, block)

            return restored

        x = x.index_select(1, self.channels)
        if inner.factors and pays(inner):
            left, right = inner.factors
            x = geometry.convolved(x, (right.rows, cols), rows(right), None)
            return _of(left, x, geometry.pointwise, self.bias)
        return geometry.convolved(x, (inner.rows, cols), rows(inner), self.bias)

    def _multiplied(self, x: Tensor) -> Tensor:
        """As a linear layer at every position: [batch, channels, ...] to [batch, channels, ...]."""
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        made: Tensor = self.term(x.movedim(1, -1))
        made = made if self.bias is None else made + self.bias.to(made.dtype)
        return made.movedim(-1, 1).contiguous()

    def _transposed(self, x: Tensor, output_size: list[int] | None) -> Tensor:
        assert not isinstance(self.padding, str)  # which transposed convolutions do not know
        padding = nn.modules.conv._ConvTransposeNd._output_padding(
            self,  # type: ignore[arg-type]  # which has all that is read there
            x, output_size, list(self.stride), list(self.padding), list(self.kernel_size), len(self.kernel_size),
            list(self.dilation),
        )  # fmt: skip
        geometry = self._geometry
        if self.term.factors and self.groups == 1 and pays(self.term):
            left, right = self.term.factors
            restored = left.block(0, left.rows).T.contiguous()
            x = geometry.pointwise.convolved(x, (left.cols, left.rows), lambda a, b: restored[a:b], None)
            return geometry.spread(x, (right.rows, right.cols), right.block, (self.bias, tuple(padding)))
        return geometry.spread(x, (self.term.rows, self.term.cols), self.term.block, (self.bias, tuple(padding)))


def _of(term: Term, x: Tensor, geometry: Geometry, bias: Tensor | None) -> Tensor:
    """The convolution of x with a term, in two where it is a product of thin matrices."""
    if term.factors and geometry.groups == 1 and pays(term):
        left, right = term.factors
        x = _of(right, x, geometry, None)
        return _of(left, x, geometry.pointwise, bias)
    return term.convolved(x, geometry, bias)


def pays(term: Term) -> bool:
    """Whether two factors take fewer multiplications than their product."""
    assert term.factors is not None  # the caller has looked
    rank = term.factors[1].rows
    return rank * (term.rows + term.cols) < term.rows * term.cols
