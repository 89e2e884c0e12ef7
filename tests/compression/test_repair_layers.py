"""Repairs of layers as users write them: the channels are where they are seen to be, and what is shared is one."""

import copy

import pytest
import torch
from tests.support.small_networks import disturbed
from torch import Tensor, nn

import waterfill
from waterfill.compression.steps.corrections import channel_axis
from waterfill.compression.steps.repair import repair


class ChannelsFirst(nn.LayerNorm):
    """A norm over the channels of images [batch, channels, height, width]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Flat(nn.LayerNorm):
    """A norm whose outputs have no dimension of channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(1)


class Block(nn.Module):
    """The layers of ConvNeXt in small: width and height may equal the channels."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.norm, self.mix = ChannelsFirst(channels), nn.Conv2d(channels, channels, 1)
        self.head = nn.Linear(channels, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        return self.head(torch.relu(self.mix(x)).mean((2, 3)))


def block() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Block()
        nn.init.uniform_(model.norm.weight, 0.5, 2)
        nn.init.normal_(model.norm.bias)
    return model.eval()


@pytest.mark.parametrize("size", [16, 12])
def test_a_norm_over_channels_in_second_place_is_repaired(size) -> None:
    model, x = block(), torch.randn(64, 3, size, size, generator=torch.Generator().manual_seed(1))
    worse = copy.deepcopy(model)
    with torch.no_grad():
        worse.norm.weight *= torch.linspace(0.5, 1.5, 16)
        worse.norm.bias += torch.linspace(-1, 1, 16)
    found = repair(worse, model, x.split(16))
    step = next(step for step in found.steps if step.what == "normalization scale and shift")
    assert step.kept and step.after < 0.8 * step.before and found.after < 0.5 * found.before
    made = waterfill.compress(model, list(x.split(16)), spec="Quantize()", price=1e-6)
    with torch.no_grad():
        gap = made.install(block())(x) - model(x)
        assert float(gap.norm() / model(x).norm()) < 0.05


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        (nn.Linear(5, 7), (2, 7, 5), 2),
        (nn.Linear(7, 7, bias=False), (7, 7, 7), 2),
        (nn.Conv2d(5, 7, 1), (7, 5, 7, 7), 1),
        (nn.ConvTranspose1d(5, 7, 1, bias=False), (7, 5, 7), 1),
        (nn.LayerNorm(7), (7, 7, 7), 2),
        (ChannelsFirst(7), (7, 7, 7, 7), 1),
        (nn.GroupNorm(1, 7), (7, 7, 7), 1),
        (nn.BatchNorm1d(7).eval(), (7, 7), 1),
        (Flat(7), (3, 6, 7), None),
    ],
)
def test_the_axis_of_the_channels_is_seen(layer, shape, axis) -> None:
    before = copy.deepcopy(layer.state_dict())
    inputs = (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)
    with torch.no_grad():
        output = layer(*inputs)
    assert channel_axis(layer, inputs, output) == axis
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    assert channel_axis(layer, (), output) is None


class Tied(nn.Module):
    """A bias that two layers and the network itself hold, and two norms with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(48))
        self.first, self.second = nn.Linear(24, 48), nn.Linear(48, 48)
        self.first.bias = self.second.bias = self.bias
        self.before, self.after = nn.LayerNorm(48), nn.LayerNorm(48)
        self.after.weight = self.before.weight
        self.head = nn.Linear(48, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.before(self.first(x)))
        return self.head(torch.relu(self.after(self.second(x))))


def tied() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tied().eval()


def test_what_layers_share_is_repaired_once_and_for_all_of_them() -> None:
    model, x = tied(), torch.randn(96, 24, generator=torch.Generator().manual_seed(1))
    found = repair(disturbed(model, 0.1, bias=0.05), model, x.split(24))
    assert found.after < found.before
    assert set(found.changed) <= set(dict(model.named_parameters()))
    assert found.model.first.bias is found.model.bias and found.model.second.bias is found.model.bias
    worse = copy.deepcopy(model)
    with torch.no_grad():
        worse.bias += torch.linspace(-0.5, 0.5, 48)
    again = repair(worse, model, x.split(24))
    assert again.after < 1e-6 < again.before and "bias" in again.changed and "first.bias" not in again.changed


def test_a_network_with_shared_vectors_is_compressed_with_inputs() -> None:
    model, x = tied(), torch.randn(96, 24, generator=torch.Generator().manual_seed(1))
    made = waterfill.compress(model, list(x.split(24)), spec="Quantize()", price=1e-6)
    assert made.aliases == {"first.bias": "bias", "second.bias": "bias", "after.weight": "before.weight"}
    with torch.no_grad():
        assert float((made.install(tied())(x) - model(x)).norm() / model(x).norm()) < 0.1
