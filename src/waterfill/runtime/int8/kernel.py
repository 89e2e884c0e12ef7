"""Convolutions of 8-bit inputs with 8-bit weights, by the kernels of oneDNN that come with PyTorch.

An input x of channel i becomes the integer q = floor(x * factor[i] + zero + 1/2), from 0 to 255; what lies beyond is
clipped. An output is the sum of (q - zero) * code, times the step of the inputs and the scale of the row. Where there
is no kernel, and where an input is NaN, the same integers are multiplied as floats.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from waterfill.runtime.int8 import order
from waterfill.runtime.int8.order import LARGEST
from waterfill.runtime.layers.geometry import Geometry

_PREPARES, _RUNS = "qconv_prepack", ("qconv2d_pointwise", "qconv_pointwise")
"""Operators of oneDNN; later releases of PyTorch have the second of those that run beside the first."""
_MOST, _HALVED = 127, 64


@dataclass(frozen=True, eq=False)
class Kernels:
    """codes: [out, in / groups, height, width], int8. scales: of the outputs, [out]. factors: of the inputs before they
    are rounded, [in]. unit: [2], their step and their zero. All but the codes are float32."""

    codes: Tensor
    scales: Tensor
    factors: Tensor
    unit: Tensor


@cache
def missing() -> str:
    """Why there are no kernels here, or ""."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, _PREPARES) and operator()):
        return "this PyTorch has no int8 convolutions of oneDNN"
    try:
        right = largest_code() > 0
    except RuntimeError as error:
        return f"the int8 convolutions of oneDNN do not run here: {str(error).splitlines()[0]}"
    return "" if right else "the int8 convolutions of oneDNN are not exact on this processor"


@cache
def operator() -> Any:
    """What runs, or None."""
    found = next((getattr(torch.ops.onednn, name) for name in _RUNS if hasattr(torch.ops.onednn, name)), None)
    return None if found is None else found.default  # without a search among its forms


@cache
def largest_code() -> int:
    """The largest magnitude of a code of which sums are exact: 127, or 64 where products are added in pairs of 16 bits;
    0 where neither is.

    Processors without VNNI add them so, and two products of 255 and 127 are more than 16 bits hold.
    """
    return next((size for size in (_MOST, _HALVED) if _exact(size)), 0)


def _exact(size: int) -> bool:
    """Whether sums of the largest inputs and codes of so large a magnitude are exact."""
    q = torch.full((1, 16, 4, 4), LARGEST, dtype=torch.uint8, device="cpu")
    codes = torch.full((16, 16, 3, 3), size, dtype=torch.int8, device="cpu")
    codes[::2] *= -1
    one = torch.ones(16, dtype=torch.float32, device="cpu")
    unit = torch.tensor([1.0, 0.0], dtype=torch.float32, device="cpu")
    geometry = Geometry((3, 3), (1, 1), (0, 0), (1, 1), 1)
    found = run(q, Ready.of(Kernels(codes, one, one, unit), geometry), None, geometry)
    return bool((found == LARGEST * codes.float().sum((1, 2, 3)).view(1, -1, 1, 1)).all())


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
        made = torch.ops.onednn.qconv_prepack(own, scales, step, zero, *_lists(geometry), geometry.groups, None)
        return cls(made, scales, torch.zeros(len(own), dtype=torch.int32, device="cpu"), step, zero)


def ready(kernels: Kernels, geometry: Geometry) -> Ready | None:
    """Codes as the kernel reads them, made once for as long as the tensors are the same; None where it does not."""
    own = (kernels.codes, kernels.scales, kernels.unit)
    now = (geometry, *((value.data_ptr(), 0 if value.is_inference() else value._version) for value in own))
    before, made = _known().get(kernels.codes, (None, None))
    if before == now:
        return made
    fits = not missing() and int(kernels.codes.to(torch.int16).abs().max()) <= largest_code()
    made = Ready.of(kernels, geometry) if fits else None
    _known()[kernels.codes] = (now, made)
    return made


@cache
def _known() -> "MutableMapping[Tensor, tuple[Any, Ready | None]]":
    """What is ready, by its codes, for as long as these live: tensors in oneDNN's order cannot be copied or saved, so
    that layers do not hold them."""
    made: MutableMapping[Tensor, tuple[Any, Ready | None]] = WeakTensorKeyDictionary()
    return made


def convolved(x: Tensor, kernels: Kernels, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """x [batch, in, height, width] on a CPU, to float32 in the order in memory that x has."""
    given = x.detach().float()
    own = ready(kernels, geometry)
    q = None if own is None or not x.numel() else order.rounded(given, kernels.factors, own.zero)
    if own is None or q is None:  # NaN stays NaN, which integers could not say
        return by_floats(given, kernels, bias, geometry)
    made = run(q, own, None if bias is None else bias.detach().float(), geometry)
    return made if order.channels_last(x) else order.first(made)


def run(  # noqa: PLR0913 - what is convolved, and what becomes of it
    q: Tensor, own: Ready, bias: Tensor | None, geometry: Geometry, zero: int | None = None, *, relu: bool = False
) -> Tensor:
    """Inputs [batch, in, height, width] (uint8) to outputs, float32, or rounded to uint8 with this zero."""
    made: Tensor = operator()(
        q, own.step, own.zero, own.codes, own.scales, own.zeros, bias, *_lists(geometry), geometry.groups,
        1.0, zero or 0, torch.float32 if zero is None else torch.uint8, "relu" if relu else "none", [], "",
    )  # fmt: skip
    return made


def by_floats(x: Tensor, kernels: Kernels, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The same integers multiplied as floats, on any device: float32 in the order in memory that x has."""
    step, zero = kernels.unit.unbind()
    weight = kernels.codes.float() * kernels.scales.view(-1, 1, 1, 1)
    given = (order.scaled(x.float(), kernels.factors, zero).floor_() - zero) * step
    added = None if bias is None else bias.float()
    stride, padding, dilation = _lists(geometry)
    made = F.conv2d(given, weight, added, stride, padding, dilation, geometry.groups)
    return made.contiguous(memory_format=order.format_of(x))


def _lists(geometry: Geometry) -> list[list[int]]:
    assert not isinstance(geometry.padding, str)  # which the term has made numbers
    return [list(each) for each in (geometry.stride, geometry.padding, geometry.dilation)]
