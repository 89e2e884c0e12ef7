"""`waterfill limits`: the bound it prints, and how far above it files are."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import waterfill
from waterfill.cli import main
from waterfill.compression.allocation.without_data import without_data
from waterfill.network.batch_norm import fold_batch_norm
from waterfill.theory import NetworkLimit, Spectrum

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)
        self.unused = nn.Linear(20, 20)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))

def net():
    torch.manual_seed(0)
    network = Net()
    network.norm.running_var.uniform_(0.02, 5)
    return network.eval()

def inputs():
    return torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(1)).cumsum(3).split(8)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a network, its inputs and its checkpoint, and the folder is the current one."""
    name = f"limits_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    space: dict[str, object] = {}
    exec(MODULE, space)
    save_file(space["net"]().state_dict(), "net.safetensors")
    return name, space


def with_data(name: str) -> tuple[str, ...]:
    return "net.safetensors", "--network", f"{name}:net", "--data", f"{name}:inputs"


def test_the_bound_of_a_checkpoint(run, checkpoint) -> None:
    ran = run("limits", checkpoint, "--bits", "1,3", "--json")
    assert ran.code == 0, ran.err
    state = load_file(checkpoint)
    conv, linear = state["conv.weight"].flatten(1), state["head.weight"]
    spectra = (Spectrum.of(conv, without_data(conv, (3, 3))),), (Spectrum.of(linear, without_data(linear)),)
    known = NetworkLimit(dict(enumerate(spectra)))
    assert ran.json["weights"] == conv.numel() + linear.numel()
    for point, rate in zip(ran.json["limits"], (3.0, 1.0), strict=True):
        assert point["bits_per_weight"] == pytest.approx(rate)
        assert point["nats"] == pytest.approx(known.at_rate(rate).nats)
        assert point["distortion_bits"] == pytest.approx(point["nats"] / math.log(2))
    tensors = ran.json["tensors"]
    assert {row["name"] for row in tensors} in ({"conv.weight", "head.weight"}, {"conv.weight", "head.twin"})
    assert sum(row["limits"][1]["nats"] for row in tensors) == pytest.approx(ran.json["limits"][1]["nats"])


def test_a_file_lies_above_the_bound(run, checkpoint, compressed) -> None:
    ran = run("limits", checkpoint, "--compare", compressed, "--json")
    assert ran.code == 0, ran.err
    (file,) = ran.json["files"]
    state, back = load_file(checkpoint), waterfill.load(compressed).state_dict()
    nats = 0.0
    for name, kernel in (("conv.weight", (3, 3)), ("head.weight", ())):
        target, found = state[name].flatten(1), back[name].flatten(1)
        nats += without_data(target, kernel).distortion(target - found)
    assert file["nats"] == pytest.approx(nats, rel=1e-5)
    assert file["above"] == pytest.approx(file["bits_per_weight"] - file["bound"])
    assert 0.1 < file["above"] < 0.6
    assert file["file_bits_per_weight"] == pytest.approx(waterfill.load(compressed).bits)
    text = run("limits", checkpoint, "--compare", compressed)
    assert text.code == 0 and "+0." in text.out and "bits/weight" in text.out


def test_an_exact_file_has_no_bound(run, checkpoint, tmp_path) -> None:
    path = tmp_path / "exact.wf"
    assert main(["compress", str(checkpoint), "--lossless", "-o", str(path), "--quiet"]) == 0
    (file,) = run("limits", checkpoint, "--compare", path, "--json").json["files"]
    assert file["nats"] == 0 and file["bound"] is None and file["above"] is None


def test_with_data_the_importance_is_measured(run, place) -> None:
    name, space = place
    ran = run("limits", *with_data(name), "--json", "--bits", "2")
    assert ran.code == 0, ran.err
    assert {row["name"] for row in ran.json["tensors"]} == {"conv.weight", "head.weight"}
    assert "no batch reaches it" in ran.json["left_out"]["unused.weight"]
    network = space["net"]()
    found = waterfill.calibrate(network, list(space["inputs"]()), probes=2)
    target = network.head.weight.detach()
    known = NetworkLimit(
        {
            "conv": (Spectrum.of(network.conv.weight.detach().flatten(1), found["conv.weight"]),),
            "head": (Spectrum.of(target, found["head.weight"]),),
        }
    )
    assert ran.json["limits"][0]["nats"] == pytest.approx(known.at_rate(2.0).nats, rel=1e-4)
    assert "not covered: unused.weight" in run("limits", *with_data(name)).out


def test_norms_folded_into_weights_change_no_bound(run, place) -> None:
    name, space = place
    network, batches = space["net"](), list(space["inputs"]())
    folded = fold_batch_norm(network, batches[0])
    model = waterfill.compress(folded, bits=4.0, importance=waterfill.calibrate(folded, batches, probes=2))
    replace(model, notes=model.notes | {"folded": True}).save("folded.wf")
    ran = run("limits", *with_data(name), "--compare", "folded.wf", "--json", "--bits", "2")
    assert ran.code == 0, ran.err
    assert 0.1 < ran.json["files"][0]["above"] < 1.5
    plain = run("limits", *with_data(name), "--json", "--bits", "2").json
    assert ran.json["limits"][0]["nats"] == pytest.approx(plain["limits"][0]["nats"], rel=0.15)
    refused = run("limits", "net.safetensors", "--compare", "folded.wf")
    assert refused.code == 2 and "--data" in refused.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("missing.safetensors",), 2, "missing.safetensors"),
        (("net.safetensors", "--network", "a:b"), 2, "--data"),
        (("net.safetensors", "--bits", "3,zero"), 2, "--bits"),
        (("net.safetensors", "--bits", "3,-1"), 2, "positive"),
        (("net.safetensors", "--compare", "missing.wf"), 2, "missing.wf"),
        (("bias.safetensors",), 4, "nothing to bound"),
    ],
)
def test_what_does_not_fit_is_said(run, place, arguments, code, said) -> None:
    save_file({"bias": torch.zeros(9)}, "bias.safetensors")
    ran = run("limits", *arguments)
    assert ran.code == code and said in ran.err


def test_a_file_of_another_model_is_refused(run, place, compressed) -> None:
    ran = run("limits", "net.safetensors", "--compare", compressed)
    assert ran.code == 4 and "is it of this model?" in ran.err
