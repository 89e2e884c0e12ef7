"""Blocks that go whole: found in any code, priced like channels, gone from files of the class too."""

import torch
from tests.support import prunable
from tests.support.small_networks import lively
from torch import nn

import waterfill
from waterfill.channels import Pruning, work
from waterfill.channels.graph.blocks import blocks_of
from waterfill.channels.graph.groups import families_of
from waterfill.channels.graph.network import Network
from waterfill.network.running.inputs import Inputs

BLOCKS = Pruning(rounds=1, blocks=True)


class Before(nn.Module):
    """A block that adds two branches one after the other, as those of transformers do: numbers [batch, 6, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.first, self.second = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16, bias=False)
        self.norm2, self.third, self.fourth = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        x = x + self.second(torch.relu(self.first(self.norm1(x))))
        return x + self.fourth(torch.relu(self.third(self.norm2(x))))


class Stack(nn.Module):
    """Blocks behind a layer; the size of one is asked for by its number."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 16)
        self.blocks = nn.ModuleList(Before() for _ in range(3))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.embed(x)
        for i, block in enumerate(self.blocks):
            x = block(x) * (1.0 if i != 1 else block.first.in_features / 16)
        return self.head(x)


class Added(nn.Module):
    """A block of linear layers: x [batch, time, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return x + self.second(torch.relu(self.first(x)))


class Plain(nn.Module):
    """Four such blocks: numbers [batch, 6, 4] to [batch, 6, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 16), nn.Linear(16, 5)
        self.blocks = nn.Sequential(*(Added() for _ in range(4)))

    def forward(self, x):
        return self.head(self.blocks(self.embed(x)))


def output(model, inputs):
    with torch.no_grad():
        return model.eval()(inputs)


def names(model, inputs):
    network = Network(model.eval(), Inputs([inputs]))
    return [block.name for block in blocks_of(network, families_of(network))]


def silent(model, block):
    """A network in which a block adds next to nothing."""
    with torch.no_grad():
        model.get_submodule(block).bn2.weight.mul_(1e-3)
        model.get_submodule(block).bn2.bias.zero_()
    return model


def test_blocks_are_those_that_give_their_input_back():
    pictures = prunable.pictures(4)
    assert names(lively(prunable.Deep, pictures), pictures) == [f"stage.{i}" for i in range(3)]
    assert names(lively(prunable.Residual, pictures), pictures) == ["blocks.0"]  # the other one changes the shape
    assert names(lively(prunable.Fire, pictures), pictures) == []
    assert names(Stack(), torch.randn(2, 6, 4)) == ["blocks.0", "blocks.2"]  # of the other one an attribute is read


def test_a_block_that_adds_little_goes_first_and_changes_nothing():
    inputs = prunable.pictures(24)
    model = silent(lively(prunable.Deep, inputs), "stage.2")
    pruned = waterfill.prune_channels(model, inputs.split(12), macs=0.73, how=BLOCKS)
    assert pruned.blocks == ("stage.2",)
    assert isinstance(pruned.model.stage[2], nn.Identity)
    assert {row["name"]: row["left"] for row in pruned.table()}["stage.2.conv1"] == 0
    assert "blocks that went whole: stage.2" in pruned.text()
    torch.testing.assert_close(output(pruned.model, inputs), output(model, inputs), rtol=1e-3, atol=1e-3)
    assert pruned.macs_share <= 0.73
    unasked = waterfill.prune_channels(model, inputs.split(12), macs=0.73, how=Pruning(rounds=1))
    assert unasked.blocks == ()  # calls take time, not multiplications


def test_blocks_and_channels_go_together_in_rounds_and_into_files(tmp_path):
    inputs = prunable.pictures(24)
    model = silent(lively(prunable.Deep, inputs), "stage.1")
    pruned = waterfill.prune_channels(model, inputs.split(12), macs=0.5, how=Pruning(rounds=2, blocks=True))
    assert pruned.blocks == ("stage.1",)
    assert pruned.macs_share <= 0.5
    waterfill.compress(pruned.model, lossless=True).save(tmp_path / "net.wf")
    net = waterfill.load(tmp_path / "net.wf").install(prunable.Deep())
    assert torch.equal(output(net, inputs), output(pruned.model, inputs))
    twice = waterfill.prune_channels(pruned.model, inputs.split(12), macs=0.8, how=Pruning(rounds=1))
    net = waterfill.channels.shrink(prunable.Deep(), twice.sizes)
    net.load_state_dict(twice.model.state_dict())
    assert torch.equal(output(net, inputs), output(twice.model, inputs))


def test_channels_can_be_counted_without_blocks_that_went():
    inputs = prunable.pictures(24)
    model = silent(lively(prunable.Deep, inputs), "stage.1")
    pruned = waterfill.prune_channels(model, inputs.split(12), keep=0.75, how=BLOCKS)
    assert "stage.1" in pruned.blocks


def with_features_twice():
    """Blocks that read the first half of the stream and add to the second; the first two see the same features."""
    torch.manual_seed(0)
    model = Plain().eval()
    with torch.no_grad():
        for block in model.blocks:
            block.first.weight[:, 8:] = 0.0
            block.second.weight[:8], block.second.bias[:8] = 0.0, 0.0
        model.blocks[0].second.weight.mul_(0.3)
        model.blocks[1].first.load_state_dict(model.blocks[0].first.state_dict())
    return model


def test_what_a_block_added_is_made_up_for_by_the_next(monkeypatch):
    """The one that goes added what the next can add as well; without the stream in its targets that is lost."""
    model, inputs = with_features_twice(), torch.randn(96, 6, 4)
    errors, how = [], Pruning(rounds=1, blocks=True, multiple=16, damping=1e-6)
    for streams in (work.streams_of, lambda network, blocks: {}):
        monkeypatch.setattr(work, "streams_of", streams)
        pruned = waterfill.prune_channels(model, inputs.split(32), macs=0.8, how=how)
        assert pruned.blocks == ("blocks.0",)
        errors.append(float((output(pruned.model, inputs) - output(model, inputs)).square().mean()))
    assert errors[0] < 0.01 * errors[1]
