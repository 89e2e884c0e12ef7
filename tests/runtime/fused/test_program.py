"""Fused convolutions in one call: the same on every instruction set, and the same as one after the other."""

import copy
import io
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.support.threads import failing
from torch import Tensor, nn

import waterfill
from waterfill import runtime
from waterfill.coding import native
from waterfill.errors import BadInput
from waterfill.runtime.fused import program
from waterfill.runtime.fused.plan import Plan
from waterfill.runtime.fused.program import Program
from waterfill.runtime.int8 import kernel

SETS = native.core.convolution_sets() if native.core is not None else []
pytestmark = pytest.mark.skipif(bool(kernel.missing()) or not SETS, reason="no kernels for int8 convolutions here")


class Shortcuts(nn.Module):
    """A residual network whose second block has fewer places, more channels and a shortcut without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 9, 3, padding=1)
        self.one, self.two = nn.Conv2d(9, 9, 3, padding=1), nn.Conv2d(9, 9, 3, padding=1)
        self.third, self.fourth = nn.Conv2d(9, 18, 3, 2, padding=1), nn.Conv2d(18, 18, 3, padding=1)
        self.last = nn.Conv2d(18, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.two(F.relu(self.one(x))))
        x = F.relu(self.fourth(F.relu(self.third(x))) + F.pad(x[:, :, ::2, ::2], [0, 0, 0, 0, 4, 5]))
        return self.last(x)


class Fires(nn.Module):
    """Concatenations of concatenations, pools, a relu that is not of a convolution, and what reads two values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.small = nn.Conv2d(3, 6, (3, 2), 2), nn.Conv2d(6, 7, 1)
        self.large, self.more = (
            nn.Conv2d(6, 20, 3, padding=1),
            nn.Conv2d(6, 33, (1, 5), padding=(0, 4), dilation=(1, 2)),
        )
        self.last = nn.Conv2d(60, 70, 3, padding=2, dilation=2)
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        both = torch.cat([self.small(x), self.large(x)], 1)
        return self.last(self.pool(torch.relu(torch.cat([both, self.more(x)], dim=1))))


def fused(model: nn.Module, shape: tuple[int, ...] = (3, 21, 18)) -> tuple[nn.Module, nn.Module, list[Tensor]]:
    """A network of 8-bit inputs, the same fused, and inputs."""
    batches = [torch.randn(5, *shape, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    packed = waterfill.pack(waterfill.compress(model.eval(), spec="Quantize()", price=1e-6), copy.deepcopy(model))
    net = runtime.quantize_activations(packed, batches, limit=10.0)
    return net, runtime.fuse(net), batches


def programs(model: nn.Module) -> list[Program]:
    return [module for module in model.modules() if isinstance(module, Program)]


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("make", [Shortcuts, Fires])
def test_a_program_does_what_its_steps_do_one_by_one(
    make: Callable[[], nn.Module], order: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net, quick, batches = fused(make())
    (own,) = programs(quick)
    with torch.no_grad():
        for x in (batch.contiguous(memory_format=order) for batch in batches):
            monkeypatch.setattr(program, "most_at_once", lambda: 0)
            expected = quick(x)
            monkeypatch.setattr(program, "most_at_once", lambda: 5)
            found = quick(x)
            assert own.beside > 0
            # Rounding halves the other way changes an integer by one, here and there.
            assert float((found - expected).norm()) < 0.02 * float((expected - expected.mean()).norm())
            torch.testing.assert_close(found, net(x), rtol=0, atol=0.05 * float(expected.abs().max()))
            assert torch.equal(torch.cat([quick(x[:2]), quick(x[2:])]), found)


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """Three convolutions of any sizes, a pool between, and the shape of an input."""
    torch.manual_seed(draw(st.integers(0, 1 << 30)))
    channels = [draw(st.integers(2, 40)) for _ in range(4)]
    layers: list[nn.Module] = []
    for ins, outs in pairwise(channels):
        size = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        stride, padding = draw(st.integers(1, 2)), (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
        layers += [nn.Conv2d(ins, outs, size, stride, padding, dilation=draw(st.integers(1, 2))), nn.ReLU()]
    layers.insert(draw(st.sampled_from([2, 4])), nn.MaxPool2d(2, draw(st.integers(1, 2))))
    return nn.Sequential(*layers, nn.Conv2d(channels[-1], 3, 1)), (channels[0], draw(st.integers(64, 70)), 65)


@given(networks())
def test_every_instruction_set_gives_the_same_bits(network: tuple[nn.Module, tuple[int, ...]]) -> None:
    _, quick, batches = fused(*network)
    (own,) = programs(quick)
    shape: tuple[int, int, int] = tuple(batches[0].shape[1:])
    found = []
    for isa in SETS:
        own._plan = (shape,), Plan.of(own.plain, [shape], isa)
        found.append(quick(batches[0]))
    assert all(torch.equal(each, found[0]) for each in found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "most_at_once", lambda: 0)
        expected = quick(batches[0])
    if float(expected.std()) > 0:
        assert float((found[0] - expected).norm()) < 0.1 * float((expected - expected.mean()).norm()) + 1e-6


@pytest.mark.skipif(program.most_at_once() == 0, reason="no instructions for a program here")
def test_shapes_follow_one_another_and_copies_are_whole() -> None:
    _, quick, batches = fused(Fires())
    first = quick(batches[0])
    assert quick(batches[0][:, :, :15, :11]).shape != first.shape
    assert torch.equal(quick(batches[0]), first)
    assert torch.equal(copy.deepcopy(quick)(batches[0]), first)
    with pytest.raises(BadInput, match="NaN"):
        quick(torch.full((1, 3, 21, 18), float("nan")))
    with pytest.raises(BadInput, match=r"\[batch, channels, height, width\]"):
        quick(batches[0][0])
    for wrong, what in ((batches[0][:, :2], "with 3 channels"), (batches[0][:, :, :2, :1], "smaller than the")):
        with pytest.raises(BadInput, match=what):
            quick(wrong)
    for other in (batches[0].long(), batches[0].clone().requires_grad_()):
        with pytest.raises(BadInput, match=r"floating-point inputs|no gradients"):
            quick(other)


def test_threads_with_other_shapes_get_their_own() -> None:
    _, quick, batches = fused(Fires())
    inputs = [batches[0][:, :, : 14 + i, :13] for i in range(4)]
    expected = [quick(x) for x in inputs]

    @torch.no_grad()
    def work(i: int) -> bool:
        return all(torch.equal(quick(inputs[i]), expected[i]) for _ in range(100))

    assert not failing(4, work)


def test_a_fused_network_stays_as_it_is() -> None:
    net, quick, batches = fused(Shortcuts())
    before = quick(batches[0])
    with pytest.raises(BadInput, match="does not learn"):
        quick.train()
    assert not any(module.training for module in (*net.modules(), *quick.modules()))
    with pytest.raises(BadInput, match="cannot be saved"):
        torch.save(quick, io.BytesIO())
    with pytest.raises(BadInput, match="fused already"):
        runtime.fuse(quick)
    with pytest.raises(BadInput, match="already"):
        runtime.quantize_activations(quick, batches)
    assert torch.equal(copy.deepcopy(quick).to(torch.float64)(batches[0]), before)
    with pytest.raises(BadInput, match="cannot be compiled"):
        torch.vmap(quick)(batches[0][None])


def test_optional_arguments_have_their_defaults() -> None:
    class Scaled(Shortcuts):
        def forward(self, x: Tensor, scale: float | None = None, twice: bool = True) -> Tensor:
            y = super().forward(x)
            return (2 * y if twice else y) if scale is None else scale * y

    net, quick, batches = fused(Scaled())
    with torch.no_grad():
        torch.testing.assert_close(quick(batches[0]), net(batches[0]), rtol=0, atol=0.1)


def test_views_that_others_read_stay_views() -> None:
    class View(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.two(F.relu(self.one(x)))
            z = y[:, :, ::2, ::2]
            z.mul_(2.0)
            return y, z

    net, quick, batches = fused(View())
    with torch.no_grad():
        for found, expected in zip(quick(batches[0]), net(batches[0]), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_what_no_program_has_runs_beside_it() -> None:
    """Groups, a value that a program and others read, and one that other layers give."""

    class Mixed(Shortcuts):
        def __init__(self) -> None:
            super().__init__()
            self.apart = nn.Conv2d(9, 9, 3, padding=1, groups=3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.sigmoid(self.stem(x))
            y = F.relu(self.two(F.relu(self.one(x))) + x)
            return self.last(self.fourth(F.relu(self.third(self.apart(y)))) * y.mean())

    net, quick, batches = fused(Mixed())
    with torch.no_grad():
        expected = net(batches[0])
        torch.testing.assert_close(quick(batches[0]), expected, rtol=0, atol=0.03 * float(expected.abs().max()))
