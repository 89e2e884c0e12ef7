"""8-bit integers from convolution to convolution: what is the same, what stays as it was, what is refused."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import waterfill
from waterfill import runtime
from waterfill.errors import BadInput
from waterfill.runtime.fused.integers import IntegerConvolution, largest_of
from waterfill.runtime.int8 import kernel

pytestmark = pytest.mark.skipif(bool(kernel.missing()), reason=kernel.missing() or "there are kernels")
X = [torch.randn(8, 3, 20, 20, generator=torch.Generator().manual_seed(i)) for i in range(4)]


class Chain(nn.Module):
    """Norms with negative weights, a pool, dropout, and two convolutions without anything between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second, self.third = nn.Conv2d(16, 24, 3, stride=2, groups=2), nn.Conv2d(24, 20, 1, bias=False)
        self.last = nn.Conv2d(20, 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.first(x))), 3, 2, padding=1, ceil_mode=True)
        x = F.dropout(self.third(self.second(x)), training=self.training)
        return self.last(torch.relu(x)).mean((2, 3))


class Branches(nn.Module):
    """Two convolutions that read the same, and one that reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.small = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 1)
        self.large, self.last = nn.Conv2d(8, 20, 3, padding=1), nn.Conv2d(32, 10, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = torch.cat([F.relu(self.small(x)), F.relu(self.large(x))], dim=1)
        return self.last(self.pool(x)).mean((2, 3))


class Residual(nn.Module):
    """A sum, which needs floats, in the two ways in which it is written."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.in_place = in_place
        self.stem, self.one = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.two, self.norm, self.last = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.norm(self.two(F.relu(self.one(x))))
        if self.in_place:
            y += x
        else:
            y = x + y
        return self.last(F.relu(y)).mean((2, 3))


def rounded(model: nn.Module, batches: list[Tensor] = X) -> nn.Module:
    """A network with 8-bit inputs, whose norms have seen something."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight), nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean), nn.init.uniform_(module.running_var, 0.5, 2.0)
    packed = waterfill.pack(waterfill.compress(model.eval(), bits=6), copy.deepcopy(model))
    return runtime.quantize_activations(packed, batches, limit=10.0)


def integers(model: nn.Module) -> list[IntegerConvolution]:
    """The convolutions that give integers."""
    every = [module for module in model.modules() if isinstance(module, IntegerConvolution)]
    return [module for module in every if module.zero is not None]


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("make", "count"), [(Chain, 3), (Branches, 3), (Residual, 1), (lambda: Residual(in_place=True), 1)]
)
def test_outputs_are_the_same_but_for_integers_halfway(make: Callable[[], nn.Module], count: int, order) -> None:
    model = make()
    net = rounded(model)
    exact = waterfill.compress(model, bits=6).install(copy.deepcopy(model))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    quick = runtime.fuse(net)
    assert len(integers(quick)) == count
    with torch.no_grad():
        for x in X:
            given = x.contiguous(memory_format=order)
            found, expected, whole = quick(given), net(given), exact(given)
            assert float((found - expected).norm()) < 0.3 * float((expected - whole).norm())
            torch.testing.assert_close(found, expected, rtol=0, atol=0.01 * float(expected.abs().max()))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    again = copy.deepcopy(quick)
    assert torch.equal(again(X[0]), quick(X[0]))


def test_convolutions_that_read_the_same_round_it_alike() -> None:
    net = rounded(Branches())
    small, large = net.small.term, net.large.term
    assert torch.equal(small.channels, large.channels) and torch.equal(small.unit, large.unit)


def test_what_other_layers_need_stays_floats() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = F.relu(self.first(x))
            return self.last(F.relu(self.second(x))), torch.sigmoid(x)

    net = rounded(Both())
    quick = runtime.fuse(net)
    assert [module.zero is None for module in quick.modules() if isinstance(module, IntegerConvolution)].count(
        True
    ) == 2
    (y, z), (expected, inner) = quick(X[0]), net(X[0])
    torch.testing.assert_close(z, inner, rtol=0, atol=1e-6)
    torch.testing.assert_close(y, expected, rtol=0, atol=0.01 * float(expected.abs().max()))


def test_networks_of_bfloat16_give_bfloat16() -> None:
    net = rounded(Chain().bfloat16(), [x.bfloat16() for x in X])
    assert runtime.fuse(net)(X[0].bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("pool", list(itertools.product((2, 3), (1, 2, 3), (0, 1), (False, True), ((7, 9), (8, 6)))))
def test_pools_of_integers_are_those_of_floats(pool) -> None:
    size, stride, padding, ceil_mode, shape = pool
    q = torch.randint(0, 256, (2, 5, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    q = q.contiguous(memory_format=torch.channels_last)
    found = largest_of(q, [size, size + 1], [stride, stride], [padding, padding], ceil_mode)
    expected = F.max_pool2d(q.float(), (size, size + 1), stride, padding, ceil_mode=ceil_mode)
    assert found.shape == expected.shape and torch.equal(found.float(), expected)


def test_what_integers_cannot_say_is_refused() -> None:
    quick = runtime.fuse(rounded(Chain()))
    with pytest.raises(BadInput, match="NaN"):
        quick(torch.full((1, 3, 20, 20), float("nan")))
    for wrong in (X[0][0], X[0][:0]):
        with pytest.raises(BadInput, match=r"\[batch, channels, height, width\]"):
            quick(wrong)


def test_a_layer_may_be_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.again(F.relu(self.again(F.relu(self.first(x), inplace=True)))) * 1.0

    net = rounded(Twice())
    quick = runtime.fuse(net)
    assert len(integers(quick)) == 2
    torch.testing.assert_close(quick(X[0]), net(X[0]), rtol=0, atol=0.02 * float(net(X[0]).abs().max()))


def test_networks_without_such_convolutions_are_refused() -> None:
    class Branching(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if float(x.sum()) > 0 else super().forward(-x)

    with pytest.raises(BadInput, match="cannot be traced"):
        runtime.fuse(rounded(Branching()))
    with pytest.raises(BadInput, match="nothing is to be gained"):
        runtime.fuse(rounded(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2592, 5))))
    net = rounded(Chain())
    with pytest.raises(BadInput, match="training mode"):
        net.norm.train()
        runtime.fuse(net)
