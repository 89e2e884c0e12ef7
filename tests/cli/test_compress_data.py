"""`waterfill compress --data`: budgets in bits and in quality, and what it says when something is missing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import waterfill
from waterfill.cli import main

MODULE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))

def x(seed):
    return torch.randn(256, 12, generator=torch.Generator().manual_seed(seed))

def inputs():
    return list(x(1).split(64))

def labelled():
    with torch.no_grad():
        return [(x(2), net()(x(2)).argmax(1))]
"""


@pytest.fixture
def loaders(tmp_path, monkeypatch):
    """The name of a module of loaders in the current folder, beside model.safetensors."""
    name = f"nets_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__(name)
    save_file({key: value.contiguous() for key, value in module.net().state_dict().items()}, "model.safetensors")
    return name


def test_a_budget_in_bits(loaders, capsys) -> None:
    data = ["--network", f"{loaders}:net", "--data", f"{loaders}:inputs"]
    assert main(["compress", "model.safetensors", "--bits", "3", *data, "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] <= 3 * told["weights"] / 8
    assert told["recipe"] == "automatic"
    assert waterfill.load("model.wf").size == told["bytes"]


def test_a_cache_is_gone_on_from_and_memory_may_be_short(loaders, capsys) -> None:
    data = ["--network", f"{loaders}:net", "--data", f"{loaders}:inputs", "--cache", "kept", "--memory", "1MB"]
    data += ["--recipe", "Quantize()"]
    for _ in range(2):
        assert main(["compress", "model.safetensors", "--price", "1e-4", *data, "--quiet", "--force"]) == 0
    assert len(list(Path("kept").glob("*.safetensors"))) == 6
    assert main(["compress", "model.safetensors", "--bits", "3", "--cache", "kept", "--force"]) == 2
    assert "--cache goes with --data" in capsys.readouterr().err


@pytest.mark.slow
def test_a_budget_in_quality(loaders, capsys) -> None:
    data = ["--network", f"{loaders}:net", "--data", f"{loaders}:inputs", "--held-out", f"{loaders}:labelled"]
    assert main(["compress", "model.safetensors", "--max-drop", "5%", *data, "--json", "--quiet"]) == 0
    trace = json.loads(capsys.readouterr().out)["trace"]
    met = [trial for trial in trace["trials"] if trial["quality"] >= trace["original"] - 0.05 - 1e-9]
    assert met and len(met) < len(trace["trials"]) + 1
    assert waterfill.load("model.wf").size == min(trial["size"] for trial in met) == trace["chosen"]["size"]
    assert trace["chosen"]["inputs"] > 1 and 0.5 <= trace["chosen"]["sure"] <= 1


@pytest.mark.parametrize("arguments", [("--max-drop", "abc"), ("--max-drop", "5%", "--sure", "12%"), ("--sure", "95%")])
def test_a_drop_without_meaning_is_a_usage_error(loaders, capsys, arguments) -> None:
    held_out = ["--held-out", "no:where"] if "--max-drop" in arguments else []
    assert main(["compress", "model.safetensors", "--data", "no:where", *held_out, *arguments]) == 2
    assert arguments[-2] in capsys.readouterr().err


def test_an_array_of_inputs(loaders, capsys) -> None:
    import numpy as np

    np.savez("inputs.npz", x=torch.randn(64, 12).numpy())
    arguments = ["--network", f"{loaders}:net", "--data", "inputs.npz", "--recipe", "Quantize()", "--quiet"]
    assert main(["compress", "model.safetensors", "--bits", "4", *arguments]) == 0
    assert "bits per weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--network", "a:b"], "--network goes with --data"),
        (["--data", "x.npz", "--lossless"], "--lossless"),
        (["--data", "x.npz", "--max-drop", "1%"], "give both"),
        (["--data", "x.npz"], "not there"),
        (["--data", "LOADERS:inputs"], "no network"),
        (["--data", "LOADERS:inputs", "--network", "LOADERS:inputs"], "torch.nn.Module"),
    ],
)
def test_what_is_missing_is_said(loaders, capsys, arguments, said) -> None:
    given = [argument.replace("LOADERS", loaders) for argument in arguments]
    assert main(["compress", "model.safetensors", *given]) != 0
    assert said in capsys.readouterr().err
