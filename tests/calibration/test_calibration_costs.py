"""The costs that `calibrate` finds agree with measured ones, for every layer and whatever code uses a weight."""

import copy
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from tests.support.calibrated import MATRICES, images, measured_over_promised, net
from torch import nn

import waterfill
from waterfill.calibration import backward


def test_of_a_linear_layer_it_is_exact():
    torch.manual_seed(0)
    x = torch.randn(40, 6) @ torch.randn(6, 6)
    costs = waterfill.calibrate(nn.Linear(6, 4), [x])
    found = costs["weight"]
    assert torch.allclose(found.rows * costs.unit, torch.ones(4, dtype=torch.float64), rtol=1e-5)
    assert torch.allclose(found.gram, x.T @ x / 40, rtol=1e-4, atol=1e-4)


def test_a_convolution_before_a_mean_costs_what_the_mean_of_its_inputs_costs():
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = images(64) + 1
    costs = waterfill.calibrate(model, [x])
    found = costs["0.weight"]
    mean = x.mean((2, 3))
    wanted = mean.T @ mean / 64
    got = found.gram * found.rows.mean() * costs.unit
    assert torch.allclose(found.rows, found.rows.mean().expand(4), rtol=1e-5)
    assert torch.allclose(got.trace().float(), wanted.trace(), rtol=1e-4)


@pytest.mark.parametrize("probes", [1, 4])
def test_costs_of_a_convolutional_network_agree_with_measured_ones(probes):
    model, batches = net(), images(96).split(24)
    found = waterfill.calibrate(model, batches, probes=probes)
    state = {name for name, value in model.state_dict().items() if value.ndim > 0}
    assert set(found) == state and not found.unreached
    assert found.samples == 96
    for name in MATRICES:
        assert 0.6 < measured_over_promised(model, batches, found, name) < 1.6, name


def test_costs_of_vectors_agree_with_measured_ones():
    model, batches = net(), images(192).split(24)
    model.train()(images(50))
    found = waterfill.calibrate(model, batches, probes=8)
    for name in ("0.bias", "3.weight", "3.bias", "3.running_mean", "3.running_var", "8.bias"):
        assert 0.6 < measured_over_promised(model, batches, found, name) < 1.6, name


def first(model, batch):
    """What the layer says first."""
    return model(batch)[0]


def attend(model, batch):
    """Self-attention."""
    return model(batch, batch, batch)[0]


SEQUENCES = {
    "lstm": (lambda: nn.LSTM(6, 8, 2, bidirectional=True, batch_first=True), first),
    "gru": (lambda: nn.GRU(6, 8), first),
    "rnn": (lambda: nn.RNN(6, 8, nonlinearity="relu"), first),
    "attention": (lambda: nn.MultiheadAttention(6, 2, batch_first=True), attend),
    "other keys": (
        lambda: nn.MultiheadAttention(6, 2, kdim=4, vdim=5, batch_first=True),
        lambda m, b: m(b, b[..., :4], b[..., :5])[0],
    ),
    "encoder": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 9, batch_first=True), 1), None),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose1d(20, 8, 3, 2), nn.Tanh(), nn.Linear(13, 4)), None),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("kind", SEQUENCES)
def test_costs_of_sequence_layers_agree_with_measured_ones(kind):
    torch.manual_seed(4)
    make, forward = SEQUENCES[kind]
    model, x = make(), torch.randn(24, 20, 6)
    found = waterfill.calibrate(model, [x], forward=forward, probes=8)
    assert set(found) == {name for name, _ in model.named_parameters()} and not found.unreached
    for name in found:
        assert 0.5 < measured_over_promised(model, [x], found, name, forward) < 2, name


class Custom(nn.Module):
    """Weights used without layers: transposed, sliced, stacked, added, tied, copied, and not at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.token = nn.Embedding(20, 8)
        self.plain = nn.Parameter(torch.randn(8, 8) / 3)
        self.sliced = nn.Parameter(torch.randn(16, 8) / 3)
        self.experts = nn.Parameter(torch.randn(3, 8, 8) / 5)
        self.place = nn.Parameter(torch.randn(10, 8))
        self.copied = nn.Parameter(torch.randn(8, 8) / 3)
        self.idle = nn.Linear(8, 8)
        self.severed = nn.Linear(8, 8)

    def forward(self, tokens):
        x = self.token(tokens) + self.place
        x = torch.tanh(x @ self.plain.T)
        x = torch.addmm(torch.zeros(8), x.flatten(0, 1), self.plain).view_as(x) + x
        x = F.linear(x, self.sliced[:8]) + torch.tanh(x @ self.sliced[8:].t())
        x = torch.tanh(x) + torch.stack([x @ expert for expert in self.experts]).sum(0)
        self.severed(x.detach())
        x = torch.tanh(F.linear(x, self.copied.double().float()))
        return F.linear(x, self.token.weight)


def test_weights_are_found_whatever_code_uses_them():
    model, tokens = Custom(), torch.randint(0, 20, (32, 10))
    found = waterfill.calibrate(model, [tokens], probes=4)
    assert set(found.unreached) == {"idle.weight", "severed.weight"}
    assert "no batch" in found.unreached["idle.weight"] and "depend" in found.unreached["severed.weight"]
    assert found["place"].gram is None and "add" in found.notes["place"]
    assert {name for name in found if found[name].gram is None} == {"place"}
    for name in found:
        assert 0.5 < measured_over_promised(model, [tokens], found, name) < 2, name


def test_rows_that_were_never_met_keep_a_small_cost():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 3))
    rows = waterfill.calibrate(model, [torch.randint(0, 10, (50,))])["0.weight"].rows
    assert (rows > 0).all() and rows[10:].max() < rows[:10].min()


def test_fisher_and_a_loss_of_ones_own():
    torch.manual_seed(0)
    x = torch.randn(400, 6)
    model = nn.Linear(6, 4)
    with torch.no_grad():
        chances = model(x).softmax(1)
    fisher = waterfill.calibrate(model, x.split(50), importance="fisher", probes=8)["weight"]
    wanted = (chances * (1 - chances)).mean(0).double()
    assert torch.allclose(fisher.rows, wanted, rtol=0.15)
    labels = torch.multinomial(chances, 1)[:, 0]
    pairs = list(zip(x.split(50), labels.split(50), strict=True))
    own = waterfill.calibrate(
        model,
        pairs,
        forward=lambda m, batch: m(batch[0]),
        importance=lambda outputs, batch: F.cross_entropy(outputs, batch[1]),
    )["weight"]
    assert torch.allclose(own.rows, wanted, rtol=0.4)


def test_compression_with_it_loses_less_than_without():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    inputs = torch.randn(400, 8) @ torch.randn(8, 48) + 0.1 * torch.randn(400, 48)
    found = waterfill.calibrate(model, inputs[:200].split(25))
    errors = []
    for importance in (None, found):
        small = copy.deepcopy(model)
        small.load_state_dict(waterfill.compress(model, spec="Quantize()", bits=4, importance=importance).state_dict())
        with torch.no_grad():
            errors.append(float((small(inputs[200:]) - model(inputs[200:])).square().mean()))
    assert errors[1] < 0.5 * errors[0]


NETWORKS = (
    "cifar10_resnet20 mnist_lenet300 imagenet_squeezenet11 imagenet_mobilenetv1_025 "
    "tinystories_llama260k shakespeare_charlstm"
)


@pytest.mark.parametrize("name", NETWORKS.split())
def test_every_weight_of_trained_networks_is_reached(data_file, name):
    from safetensors.torch import load_file

    spec = importlib.util.spec_from_file_location("refmodels", data_file("refmodels.py"))
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    state = load_file(data_file(f"{name}.safetensors"))
    tokens = torch.randint(0, 60, (2, 16))
    model, batch = {
        "cifar10_resnet20": lambda: (models.CifarResNet(20), torch.randn(2, 3, 32, 32)),
        "mnist_lenet300": lambda: (models.LeNet300(), torch.randn(2, 1, 28, 28)),
        "imagenet_squeezenet11": lambda: (models.SqueezeNet11(), torch.randn(1, 3, 96, 96)),
        "imagenet_mobilenetv1_025": lambda: (models.MobileNetV1(), torch.randn(1, 3, 96, 96)),
        "tinystories_llama260k": lambda: (models.TinyLlama(), tokens),
        "shakespeare_charlstm": lambda: (models.CharLSTM(*state["embedding.weight"].shape), tokens),
    }[name]()
    model.load_state_dict(state)
    found = waterfill.calibrate(model, [batch])
    assert not found.unreached and not found.notes
    assert set(found) >= {key for key, value in state.items() if value.ndim > 1}


class Tied(nn.Module):
    """Tokens go in and come out by one table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body = nn.Embedding(30, 8), nn.Linear(8, 8)

    def forward(self, tokens):
        return F.linear(torch.tanh(self.body(self.table(tokens))), self.table.weight)


def test_the_gradients_of_a_large_tied_weight_in_some_batches_stand_for_all(monkeypatch):
    torch.manual_seed(0)
    model, batches = Tied(), list(torch.randint(0, 30, (64, 12)).split(4))
    asked = []
    grad = torch.autograd.grad

    def counted(outputs, inputs, *rest, **named):
        asked.append({id(value) for value in inputs})
        return grad(outputs, inputs, *rest, **named)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    whole = waterfill.calibrate(model, batches)["table.weight"]
    assert all(id(model.table.weight) in ids and id(model.body.weight) not in ids for ids in asked)
    asked.clear()
    monkeypatch.setattr(backward, "_LARGE", 1)
    some = waterfill.calibrate(model, batches)["table.weight"]
    assert sum(id(model.table.weight) in ids for ids in asked) == len(batches) / 4
    assert torch.allclose(some.gram, whole.gram, rtol=1e-4, atol=1e-6)
    ratio = some.rows / whole.rows
    assert torch.allclose(ratio, ratio.mean(), rtol=1e-4) and 0.8 < float(ratio.mean()) < 1.25
