"""What `calibrate` promises: costs that agree with measured ones, a model left alone, caches, and clear refusals."""

import copy
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import waterfill
from waterfill import BadInput, PlanMismatch
from waterfill.importance import Importance


def net() -> nn.Module:
    """Convolutions of three kinds and a head."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, groups=8, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, groups=2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(12, 5),
    )


MATRICES = ("0.weight", "2.weight", "5.weight", "8.weight")


def images(count: int = 24) -> torch.Tensor:
    """Smooth images, whose neighbors correlate."""
    noise = torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(2))
    return F.avg_pool2d(noise, 3, stride=1) * 3 + 0.5


def measured_over_promised(model, batches, found, name, forward=None):
    """Half the squared change of the outputs for each row, over D, for random errors in one weight."""
    weight, measured, promised = dict(model.named_parameters())[name], 0.0, 0.0
    run = forward or (lambda m, b: m(b))
    generator = torch.Generator().manual_seed(3)
    model.eval()
    with torch.no_grad():
        for batch in batches:
            before = run(model, batch).double()
            rows = before.numel() // before.shape[-1] * len(batches)
            for _ in range(12):
                error = 1e-3 * (float(weight.std()) or 1.0) * torch.randn(weight.shape, generator=generator)
                weight.add_(error)
                measured += 0.5 * float((run(model, batch).double() - before).square().sum()) / rows
                weight.sub_(error)
                matrices = error if error.ndim == 3 and "expert" in name else error[None]
                shape = (1, -1) if weight.ndim == 1 else (weight.shape[-2 if "expert" in name else 0], -1)
                promised += sum(found[name].distortion(e.reshape(shape)) for e in matrices) / len(batches)
    return measured / promised


def test_of_a_linear_layer_it_is_exact():
    torch.manual_seed(0)
    x = torch.randn(40, 6) @ torch.randn(6, 6)
    found = waterfill.calibrate(nn.Linear(6, 4), [x])["weight"]
    assert torch.allclose(found.rows, torch.ones(4, dtype=torch.float64), rtol=1e-5)
    assert torch.allclose(found.gram, x.T @ x / 40, rtol=1e-4, atol=1e-4)


def test_a_convolution_before_a_mean_costs_what_the_mean_of_its_inputs_costs():
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = images(64) + 1
    found = waterfill.calibrate(model, [x])["0.weight"]
    mean = x.mean((2, 3))
    wanted = mean.T @ mean / 64
    got = found.gram * found.rows.mean()
    assert torch.allclose(found.rows, found.rows.mean().expand(4), rtol=1e-5)
    assert torch.allclose(got.trace().float(), wanted.trace(), rtol=1e-4)


@pytest.mark.parametrize("probes", [1, 4])
def test_costs_of_a_convolutional_network_agree_with_measured_ones(probes):
    model, batches = net(), images(96).split(24)
    found = waterfill.calibrate(model, batches, probes=probes)
    assert set(found) == {name for name, _ in model.named_parameters()} and not found.unreached
    assert found.samples == 96
    for name in MATRICES:
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


def test_the_model_is_left_as_it_was(tmp_path):
    model = net().train()
    model[8].weight.requires_grad_(False)
    model[3].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    asked = [p.requires_grad for p in model.parameters()]

    def check():
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == asked
        assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight)) and model[5].weight.grad is None
        assert not any(m._forward_hooks for m in model.modules())

    waterfill.calibrate(model, [images()])
    check()
    for broken in ([images(), torch.zeros(2, 4, 9, 9)], [images() * float("nan")]):
        with pytest.raises(BadInput):
            waterfill.calibrate(model, broken)
        check()


def test_the_same_seed_gives_the_same_and_batches_may_be_used_once():
    model, x = net(), images()
    a, b = (waterfill.calibrate(model, iter(x.split(8)), seed=6) for _ in range(2))
    other = waterfill.calibrate(model, x.split(8), seed=7)
    assert all(torch.equal(a[name].rows, b[name].rows) for name in a)
    assert torch.equal(a["5.weight"].gram, b["5.weight"].gram)
    assert not torch.equal(a["0.weight"].rows, other["0.weight"].rows)


@pytest.mark.parametrize("count", [1, 2])
def test_few_samples_dead_columns_and_singular_matrices_still_give_factors(count):
    model, x = net(), images(count)
    x[:, 1] = 0
    found = waterfill.calibrate(model, [x])
    for value in found.values():
        assert isinstance(value, Importance)
        assert (value.rows > 0).all() and (value.root is None or bool(torch.isfinite(value.root).all()))
    vector = waterfill.calibrate(nn.Linear(6, 4), [torch.randn(6)])["weight"]
    assert vector.damping == 0.01 and torch.isfinite(vector.root).all()


def test_half_precision_is_added_up_in_single():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4)), 30 * torch.randn(64, 12)
    wide = waterfill.calibrate(model, [x])
    narrow = waterfill.calibrate(model.bfloat16(), [x.bfloat16()])
    for name in ("0.weight", "2.weight"):
        assert torch.allclose(narrow[name].gram, wide[name].gram, rtol=0.1, atol=float(0.05 * wide[name].gram.max()))


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


def test_a_dict_is_keywords_and_a_tuple_is_arguments():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(3, 4)

        def forward(self, left, right):
            return {"hidden": left, "logits": self.a(left) + self.b(right)}

    model, left, right = Two(), torch.randn(9, 6), torch.randn(9, 3)
    keyed, listed = (waterfill.calibrate(model, [b]) for b in ({"right": right, "left": left}, (left, right)))
    assert torch.equal(keyed["a.weight"].gram, listed["a.weight"].gram)
    assert torch.allclose(keyed["b.weight"].gram, right.T @ right / 9, rtol=1e-4, atol=1e-4)


def test_a_cache_holds_the_same_and_is_gone_on_from(tmp_path):
    model, batches = net(), list(images().split(8))
    ran = []

    def forward(m, batch):
        ran.append(1)
        return m(batch)

    plain = waterfill.calibrate(model, batches)
    kept = waterfill.calibrate(model, batches, cache=tmp_path, forward=forward, memory=60000)
    assert len(ran) > len(batches)  # several passes
    assert list(kept) == list(plain) and kept.samples == plain.samples
    for name in plain:
        assert torch.allclose(kept[name].diagonal, plain[name].diagonal, rtol=1e-5)
        assert (
            (kept[name].gram is None) == (plain[name].gram is None) == (not name.endswith("weight") or name[0] == "3")
        )
        assert kept[name].gram is None or torch.allclose(kept[name].gram, plain[name].gram, rtol=1e-5)
        assert torch.allclose(kept[name].rows, plain[name].rows, rtol=1e-5)
        assert kept[name].damping == plain[name].damping and kept[name].kernel == plain[name].kernel
    ran.clear()
    again = waterfill.calibrate(model, batches, cache=tmp_path, forward=forward)
    assert not ran and torch.equal(again["5.weight"].gram, kept["5.weight"].gram)
    cut = tmp_path / "2.safetensors"
    cut.write_bytes(cut.read_bytes()[:40])
    repaired = waterfill.calibrate(model, batches, cache=tmp_path, forward=forward)
    assert len(ran) == len(batches) and torch.allclose(repaired["2.weight"].gram, plain["2.weight"].gram, rtol=1e-5)
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    with pytest.raises(PlanMismatch, match="weights"):
        waterfill.calibrate(model, batches, cache=tmp_path)
    with pytest.raises(BadInput, match="passes"):
        waterfill.calibrate(model, iter(batches), cache=tmp_path / "new", memory=60000)


def test_a_matrix_larger_than_the_memory_is_gathered_as_its_diagonal(tmp_path):
    x = torch.randn(30, 100)
    found = waterfill.calibrate(nn.Linear(100, 4), [x], memory=1000)
    assert found["weight"].gram is None and "memory" in found.notes["weight"]
    assert torch.allclose(found["weight"].diagonal, x.square().mean(0), rtol=1e-4)


def test_progress_counts_batches():
    seen = []
    waterfill.calibrate(net(), images().split(8), progress=seen.append)
    assert [(p.stage, p.done, p.total) for p in seen] == [("calibrating", k, 3) for k in (1, 2, 3)]


def test_compression_with_it_loses_less_than_without():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    inputs = torch.randn(400, 8) @ torch.randn(8, 48) + 0.1 * torch.randn(400, 48)
    found = waterfill.calibrate(model, inputs[:200].split(25))
    errors = []
    for importance in (None, found):
        small = copy.deepcopy(model)
        small.load_state_dict(waterfill.compress(model, "Quantize()", bits=4, importance=importance).state_dict())
        with torch.no_grad():
            errors.append(float((small(inputs[200:]) - model(inputs[200:])).square().mean()))
    assert errors[1] < 0.5 * errors[0]


class Stuck(nn.Module):
    """Outputs without a gradient."""

    def __init__(self, what) -> None:
        super().__init__()
        self.layer, self.what = nn.Linear(6, 4), what

    def forward(self, x):
        with torch.set_grad_enabled(self.what != "no_grad"):
            y = self.layer(x)
        return y.argmax(-1) if self.what == "argmax" else y


@pytest.mark.parametrize(
    ("model", "batches", "options", "words"),
    [
        (net(), [], {}, "no batches"),
        (net(), [torch.zeros(2, 4, 9, 9)], {}, r"batch 0 .*\[2, 4, 9, 9\]"),
        (net(), [images(), images() * float("inf")], {}, r"batch 1 .*inputs at '0.weight'"),
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), [torch.full((4, 3), 1e30)], {}, "inputs at '0.weight'"),
        (net(), images(), {}, "split"),
        (net(), [images()], {"importance": "magic"}, "magic"),
        (net(), [images()], {"probes": 0}, "probes"),
        (net(), [images()], {"importance": lambda o, b: o.sum() * float("nan")}, "loss"),
        (Stuck("argmax"), [torch.zeros(3, 6)], {}, "not real"),
        (Stuck("no_grad"), [torch.zeros(3, 6)], {}, "no gradient"),
    ],
)
def test_refusals(model, batches, options, words):
    with pytest.raises(BadInput, match=words):
        waterfill.calibrate(model, batches, **options)


def test_the_models_own_error_is_chained():
    with pytest.raises(BadInput) as caught:
        waterfill.calibrate(net(), [torch.zeros(2, 4, 9, 9)])
    assert isinstance(caught.value.__cause__.__cause__, RuntimeError)


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
