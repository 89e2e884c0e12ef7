"""`waterfill report`, `compare` and `sensitivity`: what they write and say, and what they refuse."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from waterfill.cli import main

MODULE = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 10))
"""
FIXED = "Quantize(bits=4, group=16)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a network's module, its checkpoint, inputs, labelled inputs, and a file of it."""
    place = tmp_path_factory.mktemp("report")
    (place / "reported_nets.py").write_text(MODULE)
    space: dict[str, object] = {}
    exec(MODULE, space)
    torch.manual_seed(3)
    network = space["net"]()
    save_file(network.state_dict(), place / "net.safetensors")
    inputs = torch.randn(40, 12, generator=torch.Generator().manual_seed(1))
    labels = network(inputs).argmax(1)
    np.save(place / "inputs.npy", inputs.numpy())
    np.savez(place / "labelled.npz", inputs=inputs.numpy(), targets=labels.numpy())
    arguments = ["compress", str(place / "net.safetensors"), "--recipe", FIXED, "--quiet", "-o", str(place / "net.wf")]
    assert main(arguments) == 0
    return place


@pytest.fixture
def here(folder, monkeypatch, tmp_path):
    """The folder is the current one; where to write."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return tmp_path


DATA = ("--network", "reported_nets:net", "--data", "inputs.npy")


def test_a_report_is_a_page_and_its_numbers(run, here) -> None:
    ran = run("report", "net.wf", "--against", "net.safetensors", "-o", here / "page.html")
    assert ran.code == 0 and "page.html" in ran.out and "page.json" in ran.out
    assert (here / "page.html").read_text("utf-8").startswith("<!doctype html>")
    numbers = json.loads((here / "page.json").read_text())
    assert numbers["error"] > 0 and numbers["costs"] == "assumed"
    again = run("report", "net.wf", "-o", here / "page.html")
    assert again.code == 3 and "page.html" in again.err
    forced = run("report", "net.wf", "-o", here / "page.html", "--force", "--json")
    assert forced.code == 0 and forced.json["error"] is None and forced.json["written"]


def test_the_numbers_alone_write_nothing(run, here, folder) -> None:
    before = sorted(folder.iterdir())
    assert run("report", "net.wf", "--json").json["written"] == []
    assert sorted(path for path in folder.iterdir() if path.suffix != "") == sorted(p for p in before if p.suffix != "")


def test_everything_that_is_measured_comes_together_in_a_report(run, here) -> None:
    """sensitivity and compare write what report reads."""
    losses, table, plot = here / "losses.json", here / "table.json", here / "plot.svg"
    ran = run("sensitivity", "net.safetensors", *DATA, "--bits", "2,6", "-o", losses, "--quiet")
    assert ran.code == 0 and "0.weight" in ran.out and "divergence a row, measured" in ran.out
    held = ("--held-out", "labelled.npz")
    asked = ("compare", "net.safetensors", "--network", "reported_nets:net", *held, "--recipes", FIXED, "--rounding")
    ran = run(*asked, "-o", table, "--plot", plot, "--quiet")
    assert ran.code == 0 and FIXED in ran.out and "accuracy of the original: 100.00 %" in ran.out
    assert ET.parse(plot).getroot().tag.endswith("svg")
    kept = json.loads(table.read_text())["rows"]
    again = run(*asked, "-o", table, "--quiet", "--json")
    assert again.json["rows"][0]["seconds"] == next(iter(kept.values()))["seconds"]  # none is measured twice
    arguments = ("report", "net.wf", "--against", "net.safetensors", *DATA, *held)
    ran = run(*arguments, "--compared", table, "--sensitivity", losses, "-o", here / "all.html", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["costs"] == "measured" and ran.json["metric"] == "accuracy"
    assert len([point for point in ran.json["points"] if "quality" in point]) == 1 + len(kept)
    page = (here / "all.html").read_text("utf-8")
    assert "divergence a row, measured" in page and 'id="quality"' in page


def test_without_data_sensitivity_is_assumed_and_says_so(run, here) -> None:
    ran = run("sensitivity", "net.safetensors")
    assert ran.code == 0 and "assumed from the weights" in ran.out
    found = run("sensitivity", "net.safetensors", "--json").json
    assert found["unit"].startswith("nats, assumed") and set(found["tensors"][0]["losses"]) == {"2", "3", "4", "8"}
    predicted = run("sensitivity", "net.safetensors", *DATA, "--predicted", "--json").json
    assert predicted["unit"].startswith("nats, predicted")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("report", "none.wf"), 2, "there is no none.wf"),
        (("report", "net.wf", *DATA), 2, "--against"),
        (("report", "net.wf", "--network", "reported_nets:net"), 2, "goes with --data"),
        (("report", "net.wf", "--compared", "net.safetensors"), 4, "no JSON of `waterfill compare`"),
        (("report", "net.wf", "--sensitivity", "inputs.npy"), 4, "no JSON of `waterfill sensitivity`"),
        (("report", "net.safetensors"), 4, "net.safetensors"),
        (("report", "net.wf", "-o", "nowhere/page.html"), 2, "nowhere"),
        (("compare", "net.safetensors", "--network", "reported_nets:net"), 2, "goes with --data"),
        (("compare", "net.safetensors", "--bits", "0"), 2, "positive rates"),
        (("compare", "net.safetensors", "--recipes", "Nothing()"), 2, "Nothing"),
        (("compare", "none.safetensors"), 2, "there is no none.safetensors"),
        (("sensitivity", "net.safetensors", "--predicted"), 2, "goes with --data"),
        (("sensitivity", "net.safetensors", "--bits", "2,9"), 2, "from 2 to 8"),
        (("sensitivity", "net.safetensors", "--bits", "x"), 2, "--bits"),
    ],
)
def test_what_is_refused(run, here, arguments, code, words) -> None:
    ran = run(*arguments)
    assert ran.code == code and words in ran.err
