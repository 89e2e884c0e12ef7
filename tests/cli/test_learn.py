"""`waterfill learn`: a file within its budget, the work folder only as long as it is needed."""

import json

import pytest
from safetensors.torch import save_file
from tests.support.toy_learning import trained

import waterfill
from waterfill.cli import main

MODULE = """
from tests.support.toy_learning import X, Y, net


def build():
    return net()


def inputs():
    return list(X.split(128))


def labelled():
    return list(zip(X.split(128), Y.split(128)))


class Ended(list):
    def __getitem__(self, index):
        raise KeyboardInterrupt


def ended():
    return Ended(inputs())
"""


@pytest.fixture
def toy(tmp_path, monkeypatch) -> str:
    """The name of a module of loaders in the current folder, beside model.safetensors."""
    name = f"toy_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    save_file({key: value.contiguous() for key, value in trained().state_dict().items()}, "model.safetensors")
    return name


def asked(toy: str, data: str, *more: str, budget: tuple[str, str] = ("--price", "1e-3")) -> list[str]:
    given = [*budget, "--network", f"{toy}:build", "--data", f"{toy}:{data}", "-o", "m.wf", "--quiet"]
    return ["learn", "model.safetensors", "--recipe", "Quantize()", "--epochs", "1", *given, *more]


def test_labels_are_learned_where_they_are_asked_for(toy, tmp_path, capsys) -> None:
    assert main(asked(toy, "labelled", "--labels", "--json", budget=("--bits", "4"))) == 0
    assert json.loads(capsys.readouterr().out)["file"] == "m.wf"
    assert waterfill.load("m.wf").bits <= 4 and not (tmp_path / "m.wf.work").exists()
    assert main(asked(toy, "inputs")) == 3  # the output is there
    assert main(asked(toy, "inputs", "--force", "--rate", "0.01", "--features", "0.3")) == 0


def test_an_interrupted_training_says_where_it_goes_on(toy, tmp_path, capsys) -> None:
    assert main(asked(toy, "ended")) == 130
    assert "goes on from m.wf.work" in capsys.readouterr().err
    assert main(asked(toy, "inputs")) == 0
    assert not (tmp_path / "m.wf.work").exists()


def test_a_refused_training_leaves_nothing_in_the_way(toy, tmp_path, capsys) -> None:
    assert main(asked(toy, "labelled")) != 0  # labels, and no word of them
    capsys.readouterr()
    assert main(asked(toy, "inputs", "--labels")) == 4
    assert "batches are (inputs, labels), and this is a Tensor" in capsys.readouterr().err
    assert main(asked(toy, "inputs", "--epochs", "-1")) != 0
    assert not (tmp_path / "m.wf.work").exists()
    assert main(asked(toy, "inputs", "--epochs", "0.5")) == 0


def test_the_plan_says_how_long_a_training_would_take(toy, capsys) -> None:
    given = ["--bits", "4", "--network", f"{toy}:build", "--epochs", "2", "--quiet"]
    assert main(["plan", "model.safetensors", "--data", f"{toy}:labelled", "--labels", "--json", *given]) == 0
    plan = json.loads(capsys.readouterr().out)
    best, worst = plan["with_inputs"]["seconds"]
    assert 0 < best <= worst < 600 and plan["with_inputs"]["memory"] > 1 << 20 and plan["with_inputs"]["disk"] == 0
    learning = plan["learning"]
    assert learning["steps"] == 16 and 0 < learning["seconds"] < 60
    assert learning["memory"] == 7 * 4 * sum(value.numel() for value in trained().parameters())
    assert main(["plan", "model.safetensors", "--data", f"{toy}:inputs", *given]) == 0
    said = capsys.readouterr().out
    assert "learning: 16 steps" in said and "with these data: " in said
    assert main(["plan", "model.safetensors", "--data", f"{toy}:inputs", "--bits", "4", "--quiet"]) == 2
