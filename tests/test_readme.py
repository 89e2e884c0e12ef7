"""The README keeps its word: its code runs, its commands work, its links lead somewhere, its figures are measured."""

import importlib
import re
import shlex
import sys
import types
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.places import CHECKOUT
from torch import Tensor, nn

from waterfill.cli import _COMMANDS, main

README = (CHECKOUT / "README.md").read_text("utf-8")
DOCUMENTS = sorted([CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *(CHECKOUT / "docs").rglob("*.md")])


def blocks(language: str) -> list[str]:
    """The fenced listings of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def whole_lines(block: str) -> list[str]:
    """The lines of a listing, those that go on joined."""
    return block.replace("\\\n", " ").splitlines()


class Net(nn.Module):
    """The reader's own class."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 1)  # not smaller: the tighter a budget, the longer it takes to meet it
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


INPUTS = torch.randn(64, 64, 2, 2, generator=torch.Generator().manual_seed(0))


def build() -> nn.Module:
    """What `--network` names."""
    return Net()


def labelled() -> list[tuple[Tensor, Tensor]]:
    """What `--held-out` names."""
    net = Net()
    net.load_state_dict(load_file("net.safetensors"))
    with torch.no_grad():
        return [(INPUTS, net(INPUTS).argmax(1))]


@pytest.fixture
def beside_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nets = types.ModuleType("nets")
    vars(nets).update(build=build, inputs=lambda: INPUTS.split(32), labelled=labelled)
    monkeypatch.setitem(sys.modules, "nets", nets)
    torch.manual_seed(1)  # of some networks one answer of 64 is so near a tie that no rounding keeps it
    save_file(Net().state_dict(), "net.safetensors")


def test_the_code_runs(beside_a_checkpoint, capsys):
    names = {"Net": Net, "model": Net(), "inputs": INPUTS}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert Path("net.wf").stat().st_size == names["small"].size
    assert torch.equal(names["net"].conv.weight, names["weight"])
    assert 10 * Path("small.wf").stat().st_size <= Path("net.safetensors").stat().st_size
    assert names["mixed"].notes["recipe"] == repr(names["recipe"])


def test_the_commands_work(beside_a_checkpoint, capsys):
    commands = [shlex.split(line, comments=True) for block in blocks("sh") for line in whole_lines(block)]
    assert {words[1] for words in commands} == set(_COMMANDS) - {"demo"}
    for program, *arguments in commands:
        assert program == "waterfill"
        small = ["900" if word == "54kB" else word for word in arguments]  # the network here is smaller
        assert main(small) == 0, f"{arguments}: {capsys.readouterr().err}"


def test_the_make_targets_exist():
    wanted = set(re.findall(r"^    make ([\w-]+)", README, re.MULTILINE))
    assert wanted == {"demo", "test"}
    assert wanted <= set(re.findall(r"^([\w-]+):", (CHECKOUT / "Makefile").read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(path):
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8")):
        assert link.startswith("https://") or (path.parent / link).exists(), f"{link} is not there"


def test_figures_and_pictures_are_the_measured_ones(monkeypatch):
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    summary = importlib.import_module("summary")
    for path in (summary.README, summary.DECISIONS):
        text = path.read_text("utf-8")
        assert text == summary.rendered(text, summary.RESULTS), f"{path.name}: run python benchmarks/summary.py"
    for path, drawn in summary.pictures(summary.RESULTS).items():
        assert path.read_text("utf-8") == drawn, f"{path.name}: run python benchmarks/summary.py"
        assert ElementTree.fromstring(drawn).tag.endswith("svg")
