"""A matrix of 8-bit codes that multiplies 8-bit inputs, as the term of a convolution."""

from dataclasses import replace

import torch
from torch import Tensor

from waterfill.errors import BadInput
from waterfill.runtime import operators
from waterfill.runtime.int8 import kernel
from waterfill.runtime.int8.kernel import Kernels
from waterfill.runtime.int8.operator import by_operator
from waterfill.runtime.int8.order import LARGEST
from waterfill.runtime.int8.rounding import Rounded
from waterfill.runtime.layers.geometry import Geometry
from waterfill.runtime.leaves import Term, check_cols


class Int8Term(Term):
    """Kernels [out, in / groups * kernel] of a convolution over inputs that are rounded to 8 bits.

    codes: [out, in / groups, height, width]; scales: [out]; channels: factors of the inputs, their step divided out,
    [in]; unit: [2], this step and the zero.
    """

    codes: Tensor
    scales: Tensor
    channels: Tensor
    unit: Tensor

    def __init__(self, rounded: Rounded, kernel_size: tuple[int, ...], groups: int) -> None:
        super().__init__()
        self.rows, self.cols = rounded.codes.shape
        self.groups, self.weights = groups, "" if rounded.exact else " (rounded again)"
        size = (1,) * (2 - len(kernel_size)) + tuple(kernel_size)
        self._keep(
            codes=rounded.codes.to(torch.int8).view(self.rows, -1, *size).contiguous(),
            scales=rounded.scales.float().contiguous(),
            channels=(rounded.channels.float() / rounded.step).contiguous(),
            unit=torch.tensor([rounded.step, rounded.zero], dtype=torch.float32, device="cpu"),
        )

    def check(self) -> None:
        if self.unit.is_meta:
            return
        step, zero = self.unit.tolist()
        if not (0 < step < float("inf") and zero in range(LARGEST + 1)):
            raise BadInput(f"the state of an int8 layer is damaged: a step of {step} and a zero of {zero}")

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest input that is not clipped, channels as they are scaled."""
        step, zero = self.unit.tolist()
        return 0.0 - zero * step, (LARGEST - zero) * step

    @property
    def beside(self) -> int:
        return self.codes.numel()

    def beyond(self, x: Tensor, channel: int) -> int:
        """How many entries of inputs are clipped. channel: the dimension of the channels."""
        units = x.movedim(channel, -1).float() * self.channels + self.unit[1]
        return int(((units < -0.5) | (units >= LARGEST + 0.5)).sum())

    def convolved(self, x: Tensor, geometry: Geometry, bias: Tensor | None) -> Tensor:
        if x.dim() == 4:
            return self._convolved(x, geometry, bias).to(x.dtype)
        made = self._convolved(x.unsqueeze(2), geometry, bias)
        return made.squeeze(2).contiguous().to(x.dtype)

    def _convolved(self, x: Tensor, geometry: Geometry, bias: Tensor | None) -> Tensor:
        """Of [batch, in, height, width], in float32."""
        run = kernel.convolved if operators.runs_here(x) else by_operator
        kernels = Kernels(self.codes, self.scales, self.channels, self.unit)
        return run(x, kernels, bias, flat(geometry))

    def forward(self, x: Tensor) -> Tensor:
        check_cols(x, self.cols)
        ones = Geometry((1, 1), (1, 1), (0, 0), (1, 1), 1)
        return self._convolved(x.reshape(-1, self.cols, 1, 1), ones, None).reshape(*x.shape[:-1], self.rows).to(x.dtype)

    def restored(self, rows: Tensor | None = None) -> Tensor:
        """The matrix that inputs are multiplied by, as if they were not rounded."""
        factors = (self.channels * self.unit[0]).view(self.groups, 1, -1, 1)
        whole = self.codes.float() * self.scales.view(-1, 1, 1, 1)
        whole = whole.reshape(self.groups, self.rows // self.groups, factors.shape[2], -1) * factors
        whole = whole.reshape(self.rows, self.cols)
        return whole if rows is None else whole[rows]

    def block(self, first: int, last: int) -> Tensor:
        return self.restored()[first:last]

    @property
    def words(self) -> str:
        low, high = self.range
        return f"8-bit codes{self.weights}, 8-bit inputs from {low:.3g} to {high:.3g}"


def flat(geometry: Geometry) -> Geometry:
    """That of two dimensions: of one, a height of 1 comes before it. A padding in words becomes numbers."""
    dims = len(geometry.kernel)
    padding = geometry.padding
    if isinstance(padding, str):
        same = padding == "same"
        spans = zip(geometry.kernel, geometry.dilation, strict=True)
        padding = tuple(dilation * (size - 1) // 2 if same else 0 for size, dilation in spans)
    elif dims == 2:
        return geometry
    more = (1,) * (2 - dims)
    return replace(
        geometry,
        kernel=more + geometry.kernel,
        stride=more + geometry.stride,
        padding=(0,) * (2 - dims) + padding,
        dilation=more + geometry.dilation,
    )
