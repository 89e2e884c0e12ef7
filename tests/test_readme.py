"""The README keeps its word: its code runs, its commands work, its links lead somewhere, its figures are measured."""

import importlib
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from waterfill.cli import main

CHECKOUT = Path(__file__).resolve().parent.parent
README = (CHECKOUT / "README.md").read_text("utf-8")
DOCUMENTS = sorted([CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *(CHECKOUT / "docs").glob("*.md")])


def blocks(language: str) -> list[str]:
    """The fenced listings of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


class Net(nn.Module):
    """The reader's own class."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 32, 3)
        self.head = nn.Linear(32, 10)


@pytest.fixture
def beside_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(Net().state_dict(), "net.safetensors")


def test_the_code_runs(beside_a_checkpoint, capsys):
    assert len(blocks("python")) == 1
    names = {"Net": Net}
    exec(compile(blocks("python")[0], "README.md", "exec"), names)
    assert Path("net.wf").stat().st_size == names["small"].size
    assert torch.equal(names["restored"].conv.weight, names["weight"])
    assert 10 * Path("sum.wf").stat().st_size <= Path("net.safetensors").stat().st_size


def test_the_commands_work(beside_a_checkpoint, capsys):
    commands = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    assert {words[1] for words in commands} == {"plan", "compress", "info", "verify", "decompress"}
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


def test_figures_and_picture_are_the_measured_ones(monkeypatch):
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    summary = importlib.import_module("summary")
    for path in (summary.README, summary.WHY):
        text = path.read_text("utf-8")
        assert text == summary.rendered(text, summary.RESULTS), f"{path.name}: run python benchmarks/summary.py"
    picture = summary.PICTURE.read_text("utf-8")
    assert picture == summary.picture(summary.runs(summary.RESULTS)), "run python benchmarks/summary.py"
    assert ElementTree.fromstring(picture).tag.endswith("svg")
