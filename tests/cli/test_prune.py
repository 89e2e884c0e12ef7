"""`waterfill prune`: a smaller network in a file, and what is said of it."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tests.support import prunable

import waterfill
from waterfill.cli import main

MODULE = """
from tests.support.prunable import Fire, pictures


def build():
    return Fire()


def inputs():
    return list(pictures(24).split(12))
"""


@pytest.fixture
def nets(tmp_path, monkeypatch) -> str:
    """The name of a module of loaders in the current folder, beside model.safetensors."""
    name = f"nets_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    save_file(prunable.Fire().state_dict(), "model.safetensors")
    return name


def asked(nets: str, *more: str) -> list[str]:
    given = ["--network", f"{nets}:build", "--data", f"{nets}:inputs", "-o", "m.wf", "--quiet"]
    return ["prune", "model.safetensors", *given, *more]


def test_the_file_holds_the_smaller_network(nets, capsys) -> None:
    assert main(asked(nets, "--macs", "0.6", "--rounds", "1", "--blocks", "--fold", "--json")) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["macs_share"] <= 0.6 and said["speedup"] is None and said["blocks"] == []
    net = waterfill.load("m.wf").install(prunable.Fire())
    assert net.squeeze.out_channels == said["sizes"]["squeeze"]["out"] < 6
    assert net(torch.zeros(1, 3, 8, 8)).shape == (1, 5)
    assert main(["evaluate", "m.wf", "--network", f"{nets}:build", "--data", f"{nets}:inputs", "--json"]) == 2


def test_text_and_errors(nets, capsys) -> None:
    assert main(asked(nets, "--keep", "0.8", "--rounds", "1")) == 0
    assert "multiplications for one input" in capsys.readouterr().out
    assert main(asked(nets, "--keep", "0.8")) == 3  # the output is there
    assert main(asked(nets, "--macs", "0.001", "--force")) == 8
    assert main(asked(nets, "--macs", "0.5", "--speedup", "2")) == 2
