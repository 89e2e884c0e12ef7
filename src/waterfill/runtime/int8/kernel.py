"""Convolutions of 8-bit inputs with 8-bit weights, by the kernels of oneDNN that come with PyTorch.

An input x of channel i becomes the integer q = floor(x * factor[i] + zero + 1/2), from 0 to 255; what lies beyond is
clipped. An output is the sum of (q - zero) * code, times the step of the inputs and the scale of the row. Where there
is no kernel, the same integers are multiplied as floats.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from waterfill.runtime.layers.geometry import Geometry

LARGEST = 255
"""The largest integer of an input; the least is 0."""
_MOST, _HALVED = 127, 64
_LIBRARY = torch.library.Library("waterfill", "FRAGMENT")
_LIBRARY.define(
    "int8_convolution(Tensor x, Tensor codes, Tensor scales, Tensor factors, Tensor unit, Tensor? bias, int[] stride, "
    "int[] padding, int[] dilation, int groups) -> Tensor"
)


@dataclass(frozen=True, eq=False)
class Kernels:
    """codes: [out, in / groups, height, width], int8. scales: of the outputs, [out]. factors: of the inputs before they
    are rounded, [in] or [1]. unit: [2], their step and their zero. All but the codes are float32."""

    codes: Tensor
    scales: Tensor
    factors: Tensor
    unit: Tensor


@cache
def missing() -> str:
    """Why there are no kernels here, or ""."""
    known = all(hasattr(torch.ops.onednn, name) for name in ("qconv_prepack", "qconv2d_pointwise"))
    if not (known and torch.backends.mkldnn.is_available()):
        return "this PyTorch has no int8 convolutions of oneDNN"
    try:
        largest_code()
    except RuntimeError as error:
        return f"the int8 convolutions of oneDNN do not run here: {str(error).splitlines()[0]}"
    return ""


@cache
def largest_code() -> int:
    """The largest magnitude of a code of which sums are exact: 127, or 64 where products are added in pairs of 16 bits.

    Processors without VNNI add them so, and two products of 255 and 127 are more than 16 bits hold.
    """
    q = torch.full((1, 16, 4, 4), LARGEST, dtype=torch.uint8, device="cpu")
    codes = torch.full((16, 16, 3, 3), _MOST, dtype=torch.int8, device="cpu")
    one = torch.ones(16, dtype=torch.float32, device="cpu")
    unit = torch.tensor([1.0, 0.0], dtype=torch.float32, device="cpu")
    geometry = Geometry((3, 3), (1, 1), (0, 0), (1, 1), 1)
    found = _run(q, Ready.of(Kernels(codes, one, one, unit), geometry), None, geometry)
    return _MOST if bool((found == LARGEST * _MOST * 16 * 9).all()) else _HALVED


@dataclass(frozen=True, eq=False)
class Ready:
    """Codes in the order in which oneDNN reads them. step, zero: of the inputs. zeros: [out], int32."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    step: float
    zero: int

    @classmethod
    def of(cls, kernels: Kernels, geometry: Geometry) -> "Ready":
        """That of codes that are in order."""
        step, zero = float(kernels.unit[0]), int(kernels.unit[1])
        own, scales = kernels.codes.detach(), kernels.scales.detach()
        lists = [list(each) for each in (geometry.stride, geometry.padding, geometry.dilation)]
        made = torch.ops.onednn.qconv_prepack(own, scales, step, zero, *lists, geometry.groups, None)
        return cls(made, scales, torch.zeros(len(own), dtype=torch.int32, device="cpu"), step, zero)


def _run(q: Tensor, ready: Ready, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Inputs [batch, in, height, width] (uint8) to outputs (float32)."""
    lists = [list(each) for each in (geometry.stride, geometry.padding, geometry.dilation)]
    made: Tensor = torch.ops.onednn.qconv2d_pointwise(
        q, ready.step, ready.zero, ready.codes, ready.scales, ready.zeros, bias, *lists, geometry.groups,
        1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return made


def convolved(x: Tensor, kernels: Kernels, ready: Ready, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """x [batch, in, height, width] on a CPU, to float32 in the order of channels last."""
    x = x.detach().float()
    if not bool(x.sum().isfinite()):  # NaN stays NaN, which integers could not say
        return by_floats(x, kernels, bias, geometry)
    rounded = _scaled(x, kernels).to(torch.uint8).contiguous(memory_format=torch.channels_last)
    made = _run(rounded, ready, None if bias is None else bias.detach().float(), geometry)
    return made.contiguous(memory_format=torch.channels_last)


def by_operator(x: Tensor, kernels: Kernels, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The same as one operator, which compilers and exporters see; on other devices with floats."""
    lists = [list(each) for each in (geometry.stride, geometry.padding, geometry.dilation)]
    own = (kernels.codes, kernels.scales, kernels.factors, kernels.unit, bias, *lists, geometry.groups)
    made: Tensor = torch.ops.waterfill.int8_convolution(x, *own)
    return made


def by_floats(x: Tensor, kernels: Kernels, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The same integers multiplied as floats, on any device: [batch, out, ...] in float32, channels last."""
    x = x.float()
    step, zero = kernels.unit.unbind()
    weight = kernels.codes.float() * kernels.scales.view(-1, 1, 1, 1)
    given = (_scaled(x, kernels).floor_() - zero) * step
    assert not isinstance(geometry.padding, str)  # which the term has made numbers
    lists = (geometry.stride, geometry.padding, geometry.dilation)
    made = F.conv2d(given, weight, None if bias is None else bias.float(), *lists, geometry.groups)
    return made.contiguous(memory_format=torch.channels_last)


def _scaled(x: Tensor, kernels: Kernels) -> Tensor:
    """Inputs [batch, in, ...] of which the whole parts are their integers; a new tensor."""
    factors = kernels.factors.view(1, -1, *(1,) * (x.dim() - 2))
    return (x * factors).add_(kernels.unit[1] + 0.5).clamp_(0, LARGEST)


def _on_cpu(x: Tensor, *given: Any) -> Tensor:
    kernels, bias, geometry = _read(given)
    if missing() or int(kernels.codes.to(torch.int16).abs().max()) > largest_code():
        return by_floats(x, kernels, bias, geometry)
    return convolved(x, kernels, Ready.of(kernels, geometry), bias, geometry)


def _elsewhere(x: Tensor, *given: Any) -> Tensor:
    return by_floats(x, *_read(given))


def _shape(x: Tensor, *given: Any) -> Tensor:
    """What compilers see."""
    kernels, _, geometry = _read(given)
    assert not isinstance(geometry.padding, str)  # which the term has made numbers
    sizes = zip(x.shape[2:], geometry.kernel, geometry.stride, geometry.padding, geometry.dilation, strict=True)
    places = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
    made = x.new_empty((x.shape[0], kernels.codes.shape[0], *places), dtype=torch.float32)
    return made.contiguous(memory_format=torch.channels_last)


def _read(given: tuple[Any, ...]) -> tuple[Kernels, Tensor | None, Geometry]:
    """The arguments of the operator after the inputs."""
    *tensors, bias, stride, padding, dilation, groups = given
    kernels = Kernels(*tensors)
    kernel = tuple(kernels.codes.shape[2:])
    return kernels, bias, Geometry(kernel, tuple(stride), tuple(padding), tuple(dilation), groups)


_LIBRARY.impl("int8_convolution", _on_cpu, "CPU")
_LIBRARY.impl("int8_convolution", _elsewhere, "CompositeExplicitAutograd")
torch.library.register_fake("waterfill::int8_convolution", _shape, lib=_LIBRARY)
