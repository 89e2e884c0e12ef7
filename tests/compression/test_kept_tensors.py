"""Tensors that are no weights, hidden weights, and numbers that are no plain reals."""

import warnings

import pytest
import torch
from safetensors.torch import save_file
from tests.support.networks import relative, same, state
from torch import nn
from torch.nn.utils import prune

import waterfill
from waterfill import Importance, Options, Steps
from waterfill.errors import BadInput, BudgetError

INFINITE = float("inf")
QUICK = Options(steps=Steps(stages=1))


def rows(made: waterfill.CompressedModel) -> dict[str, dict]:
    return {row["name"]: row for row in made.table()}


class Masked(nn.Module):
    """A mask of infinities, frequencies and a table as buffers, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(60, 32), nn.Linear(32, 60)
        self.register_buffer("mask", torch.full((16, 16), -INFINITE).triu(1))
        self.register_buffer("inv_freq", 1e4 ** (-torch.arange(0, 32, 2) / 32))
        self.register_buffer("table", torch.rand(16, 32))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(16.0)[:, None] * self.inv_freq
        x = self.embedding(tokens) * torch.cat([angles.cos(), angles.sin()], -1) + self.table
        return self.out((x @ x.mT / 8 + self.mask).softmax(-1) @ x)


@pytest.mark.parametrize("with_data", [False, True])
def test_buffers_are_exact_and_the_table_says_why(with_data):
    network = Masked().eval()
    batches = list(torch.randint(0, 60, (16, 16)).split(4))
    made = (
        waterfill.compress(network, batches, spec="Quantize()", bits=6, options=QUICK)
        if with_data
        else waterfill.compress(network, bits=6)
    )
    found = made.state_dict()
    assert all(same(found[name], network.state_dict()[name]) for name in ("mask", "inv_freq", "table"))
    reasons = {name: row["reason"] for name, row in rows(made).items()}
    assert reasons["mask"] == "holds infinite values: kept bit for bit"
    assert reasons["inv_freq"] == reasons["table"] == "a buffer, no parameter: kept bit for bit"
    assert reasons["out.weight"] == "" and made.warnings == {}
    assert 0 < relative(network.out.weight.detach(), found["out.weight"]) < 0.3


def test_a_buffer_whose_errors_have_a_cost_is_compressed():
    made = waterfill.compress(Masked(), bits=8, importance={"table": Importance()})
    assert rows(made)["table"]["reason"] == "" and rows(made)["table"]["bits"] < 16


def test_a_bare_state_dict_tells_what_it_can(tmp_path):
    tensors = state() | {
        "mask": torch.full((16, 16), -INFINITE).triu(1),
        "seen": (torch.rand(40, 40) < 0.3).float(),
        "rotary.inv_freq": 1e4 ** (-torch.arange(0, 32, 2) / 32),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    waterfill.compress_file(tmp_path / "m.safetensors", tmp_path / "m.wf", bits=4)
    for made in (waterfill.compress(tensors, bits=4), waterfill.load(tmp_path / "m.wf")):
        assert all(same(made.state_dict()[name], tensors[name]) for name in ("mask", "seen", "rotary.inv_freq"))
        assert rows(made)["seen"]["reason"] == "zeros and ones: kept bit for bit"
        assert rows(made)["seen"]["bits"] < 1.2 and rows(made)["mask"]["bits"] < 2


class Pruned(nn.Module):
    """A layer of which 80 % are hidden, and one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 128), nn.Linear(128, 10)
        prune.l1_unstructured(self.a, "weight", 0.8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)))


def output_error(network: nn.Module, made: waterfill.CompressedModel, own: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return relative(network(x), made.install(own).eval()(x))


@pytest.mark.parametrize("with_data", [False, True])
def test_what_a_mask_hides_costs_nothing(with_data, tmp_path):
    network, x, test = Pruned().eval(), torch.randn(256, 64), torch.randn(64, 64)
    if with_data:
        made = waterfill.compress(network, list(x.split(64)), spec="Quantize()", size=6000, options=QUICK)
    else:
        made = waterfill.compress(network, size=6000)
    assert output_error(network, made, Pruned(), test) < 0.006  # 0.05 and 0.1 where hidden entries were coded too
    assert made.warnings == {}
    found = made.state_dict()
    assert same(found["a.weight_mask"], network.a.weight_mask)
    assert not bool(found["a.weight_orig"][network.a.weight_mask == 0].any())
    assert rows(made)["a.weight_orig"]["error"] < 0.02
    save_file(network.state_dict(), tmp_path / "m.safetensors")
    waterfill.compress_file(tmp_path / "m.safetensors", tmp_path / "m.wf", size=6000)
    assert output_error(network, waterfill.load(tmp_path / "m.wf"), Pruned(), test) < 0.006
    exact = waterfill.compress(network, lossless=True).state_dict()
    assert same(exact["a.weight_orig"], network.a.weight_orig)


def test_hidden_rows_and_columns_leave_the_rest_its_gram_matrix():
    network, x = Pruned().eval(), torch.randn(256, 64) @ torch.randn(64, 64)
    network.a.weight_mask.fill_(1)
    network.a.weight_mask[:40] = 0
    network.a.weight_mask[:, 5:20] = 0
    made = waterfill.compress(network, list(x.split(64)), spec="Quantize()", size=6000, options=QUICK)
    with torch.no_grad():
        plain = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
        state = [network.a.weight_orig * network.a.weight_mask, network.a.bias, network.b.weight, network.b.bias]
        for parameter, value in zip(plain.parameters(), state, strict=True):
            parameter.copy_(value)
    permanent = waterfill.compress(plain, list(x.split(64)), spec="Quantize()", size=6000, options=QUICK)
    error = output_error(network, made, Pruned(), x)
    assert rows(made)["a.weight_mask"]["bytes"] < 80  # two rows that repeat
    assert error < 1.25 * output_error(plain, permanent, nn.Sequential(*map(type_of, plain)), x)


def type_of(module: nn.Module) -> nn.Module:
    return nn.ReLU() if isinstance(module, nn.ReLU) else nn.Linear(module.in_features, module.out_features)


@pytest.mark.parametrize("budget", [{"bits": 6}, {"ratio": 4.0}])
def test_complex_numbers_are_pairs_of_reals(budget, tmp_path):
    tensors = {
        "spectral": torch.randn(16, 16, 6, 6, dtype=torch.complex64),
        "phases": torch.polar(torch.ones(40), torch.rand(40) * 6).to(torch.complex128),
        "plain": torch.randn(32, 32),
    }
    made = waterfill.compress(tensors, **budget)
    assert made.weights == 2 * 16 * 16 * 36 + 2 * 40 + 1024
    made.save(tmp_path / "m.wf")
    found = waterfill.load(tmp_path / "m.wf").state_dict()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        error = float((found[name] - tensor).abs().norm() / tensor.abs().norm())
        assert 0 < error < (0.03 if "bits" in budget else 0.01), name


def test_numbers_of_eight_bits_are_compressed():
    weight = torch.randn(256, 256).to(torch.float8_e4m3fn)
    made = waterfill.compress({"w": weight, "scale": torch.ones(2, 2)}, bits=4)
    found = made.state_dict()["w"]
    assert found.dtype == weight.dtype and made.bits <= 4
    assert relative(weight.float(), found.float()) < 0.12


def test_a_conjugate_is_not_tied_to_what_it_is_the_conjugate_of():
    a = torch.randn(8, 9, dtype=torch.complex64)
    for arguments in ({"lossless": True}, {"price": 1e-12}):
        made = waterfill.compress({"a": a, "b": a.conj(), "c": a}, **arguments)
        assert made.aliases == {"c": "a"}
        assert torch.allclose(made.state_dict()["b"], a.conj(), rtol=1e-3)


def test_a_budget_that_goes_to_what_is_kept_is_told():
    table = torch.randint(0, 1 << 30, (100, 64))
    with pytest.raises(BudgetError, match=r"\d+ bytes are taken by tensors that are kept.*'table' \(\d+ bytes; not fl"):
        waterfill.compress({**state(), "table": table}, size=20_000)
    with pytest.warns(UserWarning, match="of the 30000 bytes allowed, .*'table'.*little is left"):
        waterfill.compress({**state(), "table": table}, size=30_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        waterfill.compress({**state(), "table": table[:2]}, size=8_000)


@pytest.mark.parametrize("name", ["uint4", "int4", "bits8"])
def test_types_that_no_file_can_hold_are_named(name):
    odd = torch.zeros(4, 4, dtype=torch.uint8).view(getattr(torch, name))
    for arguments in ({"lossless": True}, {"bits": 4}):
        with pytest.raises(BadInput, match=rf"'odd' is torch.{name}, which no file can hold"):
            waterfill.compress({**state(), "odd": odd}, **arguments)
