"""Convolutions that hand 8-bit integers to the next one, and what may lie between the two."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.runtime import operators
from waterfill.runtime.int8 import kernel, order
from waterfill.runtime.int8.kernel import Kernels, Ready
from waterfill.runtime.int8.order import LARGEST
from waterfill.runtime.int8.term import Int8Term, flat
from waterfill.runtime.layers.convolution import PackedConvolution


@dataclass(frozen=True, eq=False)
class Reading:
    """How integers are read: q stands for (q - zero) / factors[channel]. factors: [channels], float32."""

    factors: Tensor
    zero: int

    def same(self, other: "Reading") -> bool:
        return self.zero == other.zero and torch.equal(self.factors, other.factors)

    def channels(self, first: int, last: int) -> "Reading":
        """That of some of the channels."""
        return Reading(self.factors[first:last], self.zero)


def takes(layer: object) -> Reading | None:
    """How a layer reads its inputs; None for one that is no convolution of 8-bit inputs in two dimensions, or whose
    codes are larger than what sums are exact for here."""
    if not isinstance(layer, PackedConvolution) or not isinstance(layer.term, Int8Term):
        return None
    if layer.transposed or len(layer.kernel_size) != 2 or layer.padding_mode != "zeros":
        return None
    if int(layer.term.codes.to(torch.int16).abs().max()) > kernel.largest_code():
        return None
    return Reading(layer.term.channels, int(layer.term.unit[1]))


class IntegerConvolution(nn.Module):
    """A convolution of 8-bit inputs whose inputs or outputs are the integers [batch, channels, height, width] (uint8).

    layer: the same convolution between floats, whose codes are shared. norm: a batch norm behind it, which becomes part
    of its scales and its bias. given: whether inputs are integers already, as the layer reads them. made: how outputs
    are to be read; None for floats. relu: whether negative outputs become zero.
    """

    codes: Tensor
    scales: Tensor
    factors: Tensor
    unit: Tensor
    bias: Tensor | None

    def __init__(
        self, layer: PackedConvolution, norm: nn.BatchNorm2d | None, sides: tuple[bool, Reading | None], relu: bool
    ) -> None:
        super().__init__()
        term = layer.term
        assert isinstance(term, Int8Term)  # the caller has looked
        (self.given, made), self.relu = sides, relu
        self.zero = None if made is None else made.zero
        self._ready: Ready | None = None
        self._geometry, self._dtype = flat(layer._geometry), layer.weight.dtype
        codes, scales = term.codes.view_as(term.codes), term.scales
        bias = None if layer.bias is None else layer.bias.detach().float()
        if norm is not None:
            slope, shift = _affine(norm)
            scales, bias = scales * slope, shift if bias is None else shift + bias * slope
        if made is not None:  # what multiplies outputs before they are rounded multiplies rows as well
            scales, bias = scales * made.factors, None if bias is None else bias * made.factors
        if bool((scales < 0).any()):
            codes, scales = codes * scales.sign().to(torch.int8).view(-1, 1, 1, 1), scales.abs()
        kept = {"codes": codes, "scales": scales, "factors": term.channels, "unit": term.unit, "bias": bias}
        for name, value in kept.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.given:
            operators.check_type(x, self.codes)
        self._check(x)
        ready = self._in_order()
        q = x if self.given else order.rounded(x.detach().float(), self.factors, ready.zero)
        if q is None:
            raise BadInput("an input is NaN, which no 8-bit integer says; run the network as it was before `fuse`")
        made = kernel.run(q, ready, self.bias, self._geometry, self.zero, relu=self.relu)
        if self.zero is not None:
            return made
        return (made if order.channels_last(x) else order.first(made)).to(self._dtype)

    def _check(self, x: Tensor) -> None:
        """Raises BadInput for what the kernel does not take."""
        if not operators.runs_here(x) or not self.codes.is_cpu:
            raise BadInput(
                "a fused network runs on a CPU as it is: it cannot be compiled, exported, traced or moved; take the "
                "network that it was made of"
            )
        g, channels = self._geometry, self.codes.shape[1] * self._geometry.groups
        if x.dim() != 4 or not x.numel() or x.shape[1] != channels:
            raise BadInput(
                f"inputs of shape {list(x.shape)}: a fused network takes batches that are not empty, [batch, channels, "
                f"height, width], with {channels} channels here; run the network as it was before `fuse`"
            )
        padding: Any = g.padding
        sizes = zip(x.shape[2:], g.kernel, padding, g.dilation, strict=True)
        if any(n + 2 * p < d * (k - 1) + 1 for n, k, p, d in sizes):
            raise BadInput(f"images of {x.shape[2]} x {x.shape[3]} are smaller than the kernel that reads them")

    def _apply(self, fn: Any, recurse: bool = True) -> "IntegerConvolution":
        """Numbers may move, and stay of their type."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, value in before.items():
            now = self._buffers[name]
            if value is not None and now is not None and now.dtype != value.dtype:
                self._buffers[name] = value.to(now.device)
        self._ready = None
        return self

    def _in_order(self) -> Ready:
        """The codes as the kernel reads them."""
        if self._ready is None:
            own = Kernels(self.codes, self.scales, self.factors, self.unit)
            self._ready = Ready.of(own, self._geometry)
        return self._ready

    def multiplications(self, x: Tensor, y: Tensor) -> int:
        """In a run of these inputs and outputs."""
        return self.codes.numel() * y[:, 0].numel()

    def __getstate__(self) -> dict[str, Any]:
        """Without what cannot be copied."""
        return {**self.__dict__, "_ready": None}

    @property
    def beside(self) -> int:
        """Bytes of the codes in the order of the kernel, once it has run."""
        return 0 if self._ready is None else self.codes.numel()

    def extra_repr(self) -> str:
        sides = ("integers" if self.given else "floats", "floats" if self.zero is None else "integers")
        return f"{' to '.join(sides)}{', relu' if self.relu else ''}"


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a batch norm with its statistics multiplies channels by, and what it adds: [channels] each, float32."""
    assert norm.running_mean is not None and norm.running_var is not None  # the caller has looked
    mean, slope = norm.running_mean.double(), (norm.running_var.double() + norm.eps).rsqrt()
    slope = slope if norm.weight is None else slope * norm.weight.detach().double()
    shift = -mean * slope if norm.bias is None else norm.bias.detach().double() - mean * slope
    return slope.float(), shift.float()


def added(y: Tensor, x: Tensor, relu: bool) -> Tensor:
    """y + x, and its relu, in the place of y where they are alike."""
    made = y.add_(x) if (y.shape, y.dtype) == (x.shape, x.dtype) else y + x
    return made.relu_() if relu else made


def largest_of(q: Tensor, size: list[int], stride: list[int], padding: list[int], ceil_mode: bool) -> Tensor:
    """`max_pool2d` of integers [batch, channels, height, width] (uint8), for which PyTorch has none."""
    _, _, height, width = q.shape
    places = [places_of(*each, ceil_mode) for each in zip((height, width), size, stride, padding, strict=True)]
    if min(places) < 1:
        raise BadInput(f"images of {height} x {width} are smaller than the window of a pool that reads them")
    spans = [(n - 1) * s + k for n, s, k in zip(places, stride, size, strict=True)]
    after = [max(0, span - n - p) for span, n, p in zip(spans, (height, width), padding, strict=True)]
    if any(padding) or any(after):
        q = F.pad(q, (padding[1], after[1], padding[0], after[0]))  # with zeros, the least there is
    for dim, (span, kernel_size, step) in enumerate(zip(spans, size, stride, strict=True), start=2):
        pieces = [q.narrow(dim, i, span - kernel_size + 1) for i in range(kernel_size)]
        index = (slice(None),) * dim + (slice(None, None, step),)
        best = pieces[0][index]
        for piece in pieces[1:]:
            best = torch.maximum(best, piece[index])
        q = best
    return q


def places_of(length: int, size: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """How many outputs a pool has along a dimension: one that begins beyond the inputs does not count."""
    over = length + 2 * padding - size
    count = (-(-over // stride) if ceil_mode else over // stride) + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= length + padding else count


def at_least(q: Tensor, zero: int) -> Tensor:
    """relu of integers."""
    return q.clamp_min(zero) if 0 < zero <= LARGEST else q
