"""A matrix of 8-bit codes that multiplies 8-bit inputs, as the term of a convolution."""

from dataclasses import replace

import torch
from torch import Tensor

from waterfill.errors import BadInput
from waterfill.runtime import operators
from waterfill.runtime.int8 import kernel
from waterfill.runtime.int8.kernel import LARGEST, Kernels, Ready
from waterfill.runtime.int8.rounding import Rounded
from waterfill.runtime.layers.geometry import Geometry
from waterfill.runtime.leaves import Term, check_cols


class Int8Term(Term):
    """Kernels [out, in / groups * kernel] of a convolution over inputs that are rounded to 8 bits."""

    codes: Tensor
    scales: Tensor
    channels: Tensor
    unit: Tensor

    def __init__(self, rounded: Rounded, groups: int) -> None:
        super().__init__()
        self.rows, self.cols = rounded.codes.shape
        self.groups, self.weights = groups, "" if rounded.exact else " (rounded again)"
        self._keep(
            codes=rounded.codes.to(torch.int8).contiguous(),
            scales=rounded.scales.float().contiguous(),
            channels=rounded.channels.float().contiguous(),
            unit=torch.tensor([rounded.step, rounded.zero], dtype=torch.float32, device="cpu"),
        )
        self._ready: tuple[object, Kernels | None, Ready | None] = (None, None, None)

    def check(self) -> None:
        if self.unit.is_meta:
            return
        step, zero = self.unit.tolist()
        if not (step > 0 and zero == int(zero) and 0 <= zero <= LARGEST):
            raise BadInput(f"the state of an int8 layer is damaged: a step of {step} and a zero of {zero}")

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest input that is not clipped, channels as they are scaled."""
        step, zero = self.unit.tolist()
        return 0.0 - zero * step, (LARGEST - zero) * step

    def beyond(self, x: Tensor, channel: int) -> int:
        """How many entries of inputs are clipped. channel: the dimension of the channels."""
        step, zero = self.unit.tolist()
        units = x.movedim(channel, -1).float() * (self.channels / step) + zero
        return int(((units < -0.5) | (units >= LARGEST + 0.5)).sum())

    def convolved(self, x: Tensor, geometry: Geometry, bias: Tensor | None) -> Tensor:
        made = self._convolved(x if x.dim() == 4 else x.unsqueeze(2), _flat(geometry), bias)
        return (made if x.dim() == 4 else made.squeeze(2)).to(x.dtype)

    def _convolved(self, x: Tensor, geometry: Geometry, bias: Tensor | None) -> Tensor:
        """Of [batch, in, height, width], in float32."""
        if not operators.runs_here(x):
            return kernel.by_operator(x, self._kernels(geometry), bias, geometry)
        kernels, ready = self._prepared(geometry)
        if ready is None:
            return kernel.by_floats(x, kernels, bias, geometry)
        return kernel.convolved(x, kernels, ready, bias, geometry)

    def _prepared(self, geometry: Geometry) -> tuple[Kernels, Ready | None]:
        """The codes as the kernel reads them, made anew whenever a tensor is another; None where there is no kernel."""
        own = (self.codes, self.scales, self.channels, self.unit)
        known = (geometry, *((value.data_ptr(), 0 if value.is_inference() else value._version) for value in own))
        before, kernels, ready = self._ready
        if kernels is None or before != known:
            kernels = self._kernels(geometry)
            fits = not kernel.missing() and int(self.codes.to(torch.int16).abs().max()) <= kernel.largest_code()
            ready = Ready.of(kernels, geometry) if fits else None
            self._ready = (known, kernels, ready)
        return kernels, ready

    def _kernels(self, geometry: Geometry) -> Kernels:
        codes = self.codes.view(self.rows, -1, *geometry.kernel)
        return Kernels(codes, self.scales, self.channels / self.unit[0], self.unit)

    def forward(self, x: Tensor) -> Tensor:
        check_cols(x, self.cols)
        flat = x.reshape(-1, self.cols, 1, 1)
        ones = Geometry((1, 1), (1, 1), (0, 0), (1, 1), 1)
        return self._convolved(flat, ones, None).reshape(*x.shape[:-1], self.rows).to(x.dtype)

    def restored(self, rows: Tensor | None = None) -> Tensor:
        """The matrix that inputs are multiplied by, as if they were not rounded."""
        whole = self.codes.float() * self.scales[:, None]
        inputs, places = len(self.channels) // self.groups, self.cols * self.groups // len(self.channels)
        columns = self.channels.view(self.groups, inputs, 1).expand(-1, -1, places).reshape(self.groups, 1, -1)
        whole = (whole.view(self.groups, -1, self.cols) * columns).view(self.rows, self.cols)
        return whole if rows is None else whole[rows]

    def block(self, first: int, last: int) -> Tensor:
        return self.restored()[first:last]

    def __getstate__(self) -> dict[str, object]:
        """Without the copy in the kernel's order, which cannot be copied."""
        return self.__dict__ | {"_ready": (None, None, None)}

    @property
    def words(self) -> str:
        low, high = self.range
        return f"8-bit codes{self.weights}, 8-bit inputs from {low:.3g} to {high:.3g}"


def _flat(geometry: Geometry) -> Geometry:
    """That of two dimensions: of one, a height of 1 comes before it. A padding in words becomes numbers."""
    dims = len(geometry.kernel)
    padding = geometry.padding
    if isinstance(padding, str):
        same = padding == "same"
        spans = zip(geometry.kernel, geometry.dilation, strict=True)
        padding = tuple(dilation * (size - 1) // 2 if same else 0 for size, dilation in spans)
    more = (1,) * (2 - dims)
    return replace(
        geometry,
        kernel=more + geometry.kernel,
        stride=more + geometry.stride,
        padding=(0,) * (2 - dims) + padding,
        dilation=more + geometry.dilation,
    )
