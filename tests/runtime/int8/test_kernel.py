"""int8 convolutions beside the same integers multiplied in float64, for every geometry and order in memory."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.packed import close
from torch import Tensor

from waterfill.coding import native
from waterfill.runtime.int8 import kernel, order
from waterfill.runtime.int8.kernel import Kernels
from waterfill.runtime.int8.operator import by_operator
from waterfill.runtime.layers.geometry import Geometry

NEEDS_KERNELS = pytest.mark.skipif(bool(kernel.missing()), reason=f"here they are not: {kernel.missing()}")


def case(groups: int, outputs: int, channels: int, size: tuple[int, int]) -> Kernels:
    """Kernels with an input step of 0.02, of which 100 are below zero."""
    codes = torch.randint(-64, 65, (groups * outputs, channels, *size), dtype=torch.int8)
    factors = torch.rand(groups * channels) * 20 + 40
    return Kernels(codes, torch.rand(groups * outputs) / 100, factors, torch.tensor([0.02, 100.0]))


def wanted(x: Tensor, kernels: Kernels, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The definition, in float64."""
    step, zero = (float(value) for value in kernels.unit)
    q = (x.float() * kernels.factors.view(-1, 1, 1) + (zero + 0.5)).floor().clamp(0, 255).double()
    weight = kernels.codes.double() * kernels.scales.double().view(-1, 1, 1, 1)
    lists = (geometry.stride, geometry.padding, geometry.dilation)
    return F.conv2d((q - zero) * step, weight, None if bias is None else bias.double(), *lists, geometry.groups)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    def two(least: int, most: int) -> tuple[int, int]:
        return draw(st.integers(least, most)), draw(st.integers(least, most))

    return Geometry(two(1, 3), two(1, 2), two(0, 2), two(1, 2), draw(st.sampled_from([1, 1, 2])))


@pytest.mark.parametrize("run", [kernel.convolved, by_operator, kernel.by_floats])
@given(geometry=geometries(), outputs=st.integers(1, 20), channels=st.integers(1, 20), last=st.booleans())
@settings(max_examples=20, deadline=None)
@torch.no_grad()
def test_every_geometry(run: object, geometry: Geometry, outputs: int, channels: int, last: bool) -> None:
    torch.manual_seed(outputs)
    kernels = case(geometry.groups, outputs, channels, geometry.kernel)
    x = 4 * torch.randn(2, geometry.groups * channels, 7, 9)  # of which some are clipped
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    bias = torch.randn(geometry.groups * outputs) if outputs % 2 else None
    found = run(x, kernels, bias, geometry)
    assert close(found, wanted(x, kernels, bias, geometry), 1e-5)
    plain = F.conv2d(x, kernels.codes.float(), None, *_lists(geometry), geometry.groups)
    assert found.is_contiguous() or found.is_contiguous(memory_format=torch.channels_last)
    assert found.is_contiguous() == plain.is_contiguous()  # code after it may say view()


def _lists(geometry: Geometry) -> list[object]:
    return [geometry.stride, geometry.padding, geometry.dilation]


@given(batch=st.integers(1, 3), channels=st.integers(1, 70), height=st.integers(1, 12), last=st.booleans())
@settings(max_examples=40, deadline=None)
def test_inputs_are_rounded_as_pytorch_would(batch: int, channels: int, height: int, last: bool) -> None:
    torch.manual_seed(height)
    x = 3 * torch.randn(batch, channels, height, 11)
    x = x.contiguous(memory_format=torch.channels_last) if last else x[:, :, :, 1:]
    factors = torch.rand(channels) * 100
    found = order.rounded(x, factors, 77)
    assert found is not None and found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, order.scaled(x, factors, 77).to(torch.uint8))
    turned = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(order.first(turned), x) and order.first(turned).is_contiguous()


@pytest.mark.parametrize("pure", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_an_input_that_is_nan_stays_nan(last: bool, pure: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if pure:
        monkeypatch.setattr(native, "core", None)
    kernels, geometry = case(1, 4, 20, (1, 1)), Geometry((1, 1), (1, 1), (0, 0), (1, 1), 1)
    x = torch.randn(2, 20, 5, 70)
    x[1, 18, 3, 66] = torch.nan
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    found = kernel.convolved(x, kernels, None, geometry)
    assert bool(found[1, :, 3, 66].isnan().all()) and int(found.isnan().sum()) == 4


def test_infinite_inputs_are_clipped() -> None:
    kernels, geometry = case(1, 4, 3, (1, 1)), Geometry((1, 1), (1, 1), (0, 0), (1, 1), 1)
    x = torch.full((1, 3, 2, 2), torch.inf)
    assert close(kernel.convolved(x, kernels, None, geometry), wanted(x, kernels, None, geometry), 1e-5)


@NEEDS_KERNELS
def test_codes_that_would_overflow_are_multiplied_as_floats() -> None:
    kernels, geometry = case(1, 16, 32, (3, 3)), Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1)
    kernels.codes.fill_(127)
    x = torch.full((1, 32, 6, 6), 100.0)
    assert close(kernel.convolved(x, kernels, None, geometry), wanted(x, kernels, None, geometry), 1e-5)


@NEEDS_KERNELS
def test_codes_are_read_anew_when_they_change() -> None:
    kernels, geometry = case(1, 4, 3, (1, 1)), Geometry((1, 1), (1, 1), (0, 0), (1, 1), 1)
    x = torch.randn(1, 3, 4, 4)
    before = kernel.convolved(x, kernels, None, geometry)
    kernels.codes.neg_()
    assert close(kernel.convolved(x, kernels, None, geometry), -before, 1e-5)
    kernels.unit[1] += 3
    assert close(kernel.convolved(x, kernels, None, geometry), wanted(x, kernels, None, geometry), 1e-5)


def test_a_batch_without_inputs() -> None:
    kernels, geometry = case(1, 4, 3, (1, 1)), Geometry((1, 1), (1, 1), (0, 0), (1, 1), 1)
    assert kernel.convolved(torch.zeros(0, 3, 4, 4), kernels, None, geometry).shape == (0, 4, 4, 4)
