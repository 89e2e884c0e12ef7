"""`waterfill evaluate`: what it prints, and what it says when something does not fit."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import waterfill
from waterfill.cli import main
from waterfill.runtime.int8 import kernel

MODULE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 10))

def inputs():
    return torch.randn(40, 12, generator=torch.Generator().manual_seed(1))

def labelled():
    x = inputs()
    with torch.no_grad():
        return [(x, net()(x).argmax(1))]

def both():
    return net(), [inputs()]

def nothing():
    return []

def images():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()
    return nn.Sequential(*layers)

def pictures():
    x = torch.randn(16, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return [(x, images()(x).argmax(1))]
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a module of loaders, a checkpoint and its .wf file, and the folder is the current one."""
    name = f"loaders_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    space: dict[str, object] = {}
    exec(MODULE, space)
    save_file(space["net"]().state_dict(), "model.safetensors")
    assert main(["compress", "model.safetensors", "--bits", "3.5", "--quiet"]) == 0
    return name, space


def test_targets_and_reference_give_everything(run, place) -> None:
    name, space = place
    ran = run(
        *("evaluate", "model.wf", "--network", f"{name}:net", "--data", f"{name}:labelled"),
        *("--reference", "model.safetensors", "--layers", "--json"),
    )
    assert ran.code == 0, ran.err
    model, original = waterfill.load("model.wf").install(space["net"]()), space["net"]()
    known = waterfill.evaluate(model, space["labelled"](), reference=original, layers=True).as_json()
    assert ran.json == {"file": "model.wf", "reference": "model.safetensors"} | known
    assert ran.json["divergence"] > 0 and ran.json["accuracy"] == ran.json["agreement"]


def test_the_original_itself_loses_nothing(run, place) -> None:
    name, _ = place
    ran = run("evaluate", "model.safetensors", "--network", f"{name}:net", "--data", f"{name}:labelled")
    assert ran.code == 0 and "100.00 %" in ran.out and "divergence" not in ran.out


def test_plain_arrays_and_a_loader_that_brings_the_network(run, place) -> None:
    name, space = place
    import numpy as np

    np.savez("x.npz", x=space["inputs"]().numpy())
    common = ("--reference", "model.wf", "--json")
    array = run("evaluate", "model.wf", "--network", f"{name}:net", "--data", "x.npz", *common)
    both = run("evaluate", "model.wf", "--data", f"{name}:both", *common)
    assert array.code == both.code == 0, array.err + both.err
    for ran in (array, both):
        assert ran.json["rows"] == 40 and ran.json["divergence"] == 0 and ran.json["agreement"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("model.wf", "--data", "{}:labelled", "--layers"), 2, "--reference"),
        (("model.wf", "--data", "{}:labelled"), 2, "--network"),
        (("missing.wf", "--network", "{}:net", "--data", "{}:labelled"), 2, "missing.wf"),
        (("model.wf", "--network", "{}:net", "--data", "{}:nothing"), 4, "no batches"),
        (("model.wf", "--network", "{}:net", "--data", "{}:unknown"), 2, "unknown"),
        (("model.wf", "--network", "{}:net"), 2, "--data"),
    ],
)
def test_what_does_not_fit_is_said(run, place, arguments, code, said) -> None:
    ran = run("evaluate", *(argument.format(place[0]) for argument in arguments))
    assert ran.code == code and said in ran.err


def test_another_networks_weights_are_a_mismatch(run, place) -> None:
    name, _ = place
    save_file({"other.weight": torch.zeros(3, 3)}, "other.safetensors")
    ran = run("evaluate", "other.safetensors", "--network", f"{name}:net", "--data", f"{name}:labelled")
    assert ran.code == 4 and "other.safetensors does not fit" in ran.err and "the file lacks: " in ran.err
    assert len(ran.err) < 500 and ran.err.count("\n") == 1
    save_file({f"layers.{i}.weight": torch.zeros(2, 2) for i in range(99)}, "other.safetensors")
    ran = run("evaluate", "other.safetensors", "--network", f"{name}:net", "--data", f"{name}:labelled")
    assert "layers.0.weight" in ran.err and "and 94 more" in ran.err and len(ran.err) < 500


def test_bits_a_byte_and_targets_in_an_archive(run, place) -> None:
    name, space = place
    (x, y), *_ = space["labelled"]()
    np.savez("labelled.npz", inputs=x.numpy(), targets=y.numpy())
    told = ["evaluate", "model.wf", "--network", f"{name}:net", "--json", "--bytes", "80"]
    archive, module = (run(*told, "--data", data).json for data in ("labelled.npz", f"{name}:labelled"))
    assert archive["bits_per_byte"] == pytest.approx(archive["bits_per_token"] * 40 / 80)
    assert archive["accuracy"] == module["accuracy"] and archive["nats"] == pytest.approx(module["nats"], rel=1e-5)


def test_nothing_to_measure_says_what_is_missing(run, place) -> None:
    name, _ = place
    ran = run("evaluate", "model.wf", "--network", f"{name}:net", "--data", f"{name}:inputs")
    assert ran.code == 2 and "no targets" in ran.err and "--reference" in ran.err


def test_speed_shows_the_restored_network_and_the_packed_one(run, place, tmp_path) -> None:
    name, _ = place
    common = ("--network", f"{name}:net", "--data", f"{name}:labelled", "--speed", "1,8")
    shown = run("evaluate", "model.wf", *common, "--reference", "model.safetensors")
    assert shown.code == 0, shown.err
    for word in ("original", "restored", "packed, 16-bit inputs", "packed, 8-bit inputs", "times as fast"):
        assert word in shown.out
    assert "original, bfloat16" in shown.out and "times smaller than" in shown.out and "multiplications" in shown.out
    said = run("evaluate", "model.wf", *common, "--json").json
    names = ("restored", "restored, bfloat16", "packed, 16-bit inputs", "packed, 8-bit inputs")
    assert [(row["name"], row["inputs"]) for row in said["speed"]] == [
        (name, size) for size in (1, 8) for name in names
    ]
    assert all(row["macs"] == 12 * 64 + 64 * 10 and row["macs_share"] == 1 for row in said["speed"])
    whole, half = (row["memory"] for row in said["speed"][:2])
    assert whole == 2 * half == 4 * (12 * 64 + 64 + 64 * 10 + 10)
    assert said["compression"]["bytes"] == (tmp_path / "model.wf").stat().st_size
    assert said["compression"]["ratio"] == whole / said["compression"]["bytes"]
    refused = run("evaluate", "model.safetensors", *common)
    assert refused.code == 2 and "a .wf file" in refused.err


@pytest.mark.skipif(bool(kernel.missing()), reason=kernel.missing() or "there are kernels")
def test_speed_of_convolutions_on_integers_stands_beside(run, place) -> None:
    name, space = place
    waterfill.compress(space["images"](), bits=6).save("images.wf")
    told = ("evaluate", "images.wf", "--network", f"{name}:images", "--data", f"{name}:pictures", "--speed", "1")
    shown = run(*told)
    assert shown.code == 0, shown.err
    assert "fused, 8-bit inputs" in shown.out and "fused: divergence" in shown.out
    rows = {row["name"]: row for row in run(*told, "--json").json["speed"]}
    assert rows["fused, 8-bit inputs"]["macs"] == rows["restored"]["macs"] > 0
