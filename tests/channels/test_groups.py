"""Which channels go together, and which cannot go: found whatever code lies between the layers."""

import pytest
import torch
from tests.support import prunable
from tests.support.small_networks import lively
from torch import Tensor, nn

from waterfill.channels.graph.cut import cut_choice, failing
from waterfill.channels.graph.groups import Family, families_of
from waterfill.channels.graph.network import Network
from waterfill.channels.graph.removable import halves, removable
from waterfill.network.running.forward import copy_of
from waterfill.network.running.inputs import Inputs


def families(model: nn.Module, inputs: Tensor) -> dict[str, Family]:
    network = Network(model.eval(), Inputs([inputs[:4]]))
    return {family.name: family for family in removable(network, families_of(network))}


def shape(family: Family) -> dict[tuple[str, str], int]:
    """By layer and side, the channels of each of its groups."""
    return {node: len(channels) for node, channels in family.groups[0].items()}


def test_convolutions_norms_and_flattened_maps():
    found = families(prunable.Plain(), prunable.pictures())
    assert shape(found["conv1"]) == {("conv1", "out"): 1, ("bn1", "out"): 1, ("conv2", "in"): 1}
    assert shape(found["conv2"]) == {("conv2", "out"): 1, ("act", "out"): 1, ("head", "in"): 4}
    assert [len(found[name].groups) for name in ("conv1", "conv2")] == [8, 12]
    assert torch.equal(found["conv2"].groups[5]["head", "in"], torch.arange(20, 24))
    assert "output" in found["head"].reason


def test_residual_sums_join_what_is_added():
    found = families(lively(prunable.Residual, prunable.pictures()), prunable.pictures())
    stream = shape(found["stem"])
    assert stream["blocks.0.conv2", "out"] == stream["blocks.1.conv2", "out"] == stream["head", "in"] == 1
    assert not found["stem"].reason
    assert set(shape(found["blocks.1.conv1"])) == {
        ("blocks.1.conv1", "out"),
        ("blocks.1.bn1", "out"),
        ("blocks.1.conv2", "in"),
    }
    padded = found[
        "blocks.1.conv2"
    ]  # channels that the shortcut fills with zeros at both ends, as many as it is told to
    assert shape(padded)["head", "in"] == 2
    assert (len(padded.groups), padded.attributes, padded.reason) == (2, (("blocks.1", "extra"),), "")
    assert torch.equal(padded.groups[1]["head", "in"], torch.tensor([1, 9]))


def test_concatenated_channels_lie_behind_one_another():
    found = families(prunable.Fire(), prunable.pictures())
    assert torch.equal(found["expand3"].groups[2]["head", "in"], torch.tensor([10]))
    assert shape(found["squeeze"]) == {("squeeze", "out"): 1, ("expand1", "in"): 1, ("expand3", "in"): 1}


def test_grouped_convolutions_and_norms_lose_whole_groups():
    found = families(prunable.Separable(), prunable.pictures())
    assert shape(found["first"]) == dict.fromkeys(
        [("first", "out"), ("depthwise", "in"), ("depthwise", "out"), ("norm", "out"), ("point", "in")], 1
    )
    assert shape(found["point"]) == dict.fromkeys(
        [("point", "out"), ("grouped", "in"), ("grouped", "out"), ("groups", "out"), ("up", "in")], 4
    )
    assert len(found["up"].groups) == 6
    assert not any(found[name].reason for name in ("first", "point", "up"))


def test_heads_are_groups_where_the_code_asks_how_many_there_are():
    found = families(prunable.Transformer(), prunable.texts())
    head = found["attention.query"]
    assert len(head.groups) == 4
    assert set(shape(head).values()) == {4}
    assert not head.reason
    assert shape(found["gate"]) == {("gate", "out"): 1, ("up", "out"): 1, ("down", "in"): 1}
    assert found["tokens"].reason  # the residual stream, normalized and tied to the outputs


def test_a_number_of_heads_that_a_module_holds_goes_along():
    found = families(prunable.Transformer(heads="held"), prunable.texts())
    assert found["attention.query"].attributes == (("attention", "heads"),)
    assert not found["attention.query"].reason


def test_heads_stay_where_the_code_counts_on_their_number():
    found = families(prunable.Transformer(heads="written"), prunable.texts())
    assert "its code wants the size" in found["attention.query"].reason
    assert not found["gate"].reason


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_hidden_units_of_recurrent_layers(kind):
    found = families(prunable.Recurrent(kind), prunable.texts())
    assert shape(found["cell"]) == {("cell", "out"): 1, ("head", "in"): 1}
    assert [len(found[name].groups) for name in ("embedding", "cell")] == [8, 12]
    assert not found["cell"].reason


def test_gates_in_one_matrix_go_with_what_they_gate():
    found = families(lively(prunable.Perceptron, torch.randn(64, 12)), torch.randn(4, 12))
    assert shape(found["gated"]) == {("gated", "out"): 2, ("norm", "out"): 1, ("head", "in"): 1}
    assert torch.equal(found["gated"].groups[3]["gated", "out"], torch.tensor([3, 10]))
    assert len(found["first"].groups) == 16


def test_tied_matrices_lose_the_same_dimension():
    found = families(prunable.TiedEmbedding(), prunable.texts())
    assert shape(found["tokens"]) == {("tokens", "out"): 1, ("head", "in"): 1}
    assert not found["tokens"].reason
    assert found["head"].reason


class Shuffled(nn.Module):
    """Channels that change places, are repeated and are summed with those of another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(5, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.c, self.d = nn.Linear(12, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.a(x)[:, [3, 1, 0, 2, 5, 4]] + self.b(x)
        return self.d((self.c(torch.cat([mixed, mixed.flip(1)], 1))) * 2)


def test_shuffles_are_followed():
    found = families(Shuffled(), torch.randn(4, 5))
    group = found["a"].groups[0]
    assert [group[node].tolist() for node in (("a", "out"), ("b", "out"), ("c", "in"))] == [[0], [2], [2, 9]]


class Fixed(Shuffled):
    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(torch.cat([self.a(x) * self.scale, self.b(x)], 1)))


def test_a_parameter_of_the_network_itself_keeps_channels_where_they_are():
    found = families(Fixed(), torch.randn(4, 5))
    assert "RuntimeError" in found["a"].reason
    assert not found["b"].reason


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (prunable.Separable, prunable.pictures(4)),
        (prunable.Transformer, prunable.texts(4)),
        (prunable.Recurrent, prunable.texts(4)),
        (prunable.TiedEmbedding, prunable.texts(4)),
    ],
)
def test_the_smaller_network_says_what_the_whole_one_says_without_these_channels(build, inputs):
    network = Network(build().eval(), Inputs([inputs]))
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    found = [family for family in families_of(network) if not family.reason]
    choice = halves(found, seed=1)
    assert choice
    assert failing(network, choice) == {}
    assert all(torch.equal(value, before[name]) for name, value in network.model.state_dict().items())
    smaller = Network(copy_of(network.model), network.inputs)
    cut_choice(smaller, choice)
    assert len(list(smaller.model.parameters())) == len(list(network.model.parameters()))  # tied ones stay tied
    assert sum(p.numel() for p in smaller.model.parameters()) < sum(v.numel() for v in before.values())


def test_a_group_wrongly_put_together_is_noticed():
    network = Network(prunable.Plain().eval(), Inputs([prunable.pictures(4)]))
    right = next(family for family in families_of(network) if family.name == "conv1")
    shifted = [{**group, ("conv2", "in"): (group["conv2", "in"] + 1) % 8} for group in right.groups]
    wrong = Family(tuple(shifted))
    assert "outputs are others" in failing(network, {wrong: [0, 3]})[wrong]
