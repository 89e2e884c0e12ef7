"""The pages of `docs/` keep their word: what recipes and engines they show runs, and the site is whole."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file
from tests.support.places import CHECKOUT
from torch import nn

import waterfill

EXTRAS_OF_DEVELOPERS = {"dev", "bench", "docs", "fuzz", "all"}


def listings(page: str) -> list[str]:
    """The fenced Python of a page."""
    return re.findall(r"```python\n(.*?)```", (CHECKOUT / "docs" / page).read_text("utf-8"), re.DOTALL)


class Net(nn.Sequential):
    """The reader's own class."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 8))


def test_the_recipes_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, inputs = Net(), torch.randn(32, 3, 6, 6)
    save_file(model.state_dict(), "net.safetensors")
    with torch.no_grad():
        labelled = [(inputs, model(inputs).argmax(1))]
    names = {"Net": Net, "model": model, "batches": inputs.split(16), "labelled": labelled}
    for listing in listings("recipes.md"):
        exec(
            compile(listing.replace("bits=2)", "bits=6)"), "recipes.md", "exec"), names
        )  # so small a net has no 2 bits
    assert {path.name for path in tmp_path.iterdir()} >= {"net.wf", "exact.wf", "small.wf"}


def test_the_engine_on_the_page_is_one(tmp_path):
    names = {}
    (shown,) = [listing for listing in listings("scale.md") if "class " in listing]
    exec(compile(shown, "scale.md", "exec"), names)
    names["ProcessPoolExecutor"] = ThreadPoolExecutor  # which begins sooner
    save_file({"weight": torch.randn(40, 50)}, tmp_path / "m.safetensors")
    for target, engine in (("here.wf", None), ("there.wf", names["Processes"]())):
        waterfill.compress_file(tmp_path / "m.safetensors", tmp_path / target, price=1e-4, engine=engine)
    assert (tmp_path / "here.wf").read_bytes() == (tmp_path / "there.wf").read_bytes()


def test_the_extra_all_has_every_other_but_those_of_developers():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = set(re.fullmatch(r"waterfill\[(.*)\]", extras["all"][0])[1].split(","))
    assert named == set(extras) - EXTRAS_OF_DEVELOPERS


@pytest.mark.slow
def test_the_site_is_whole_and_loads_nothing_from_elsewhere(tmp_path):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("needs the extra: pip install 'waterfill[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "api.html").read_text("utf-8")
    assert [
        name for name in waterfill.__all__ if f"\n            {name}\n" not in page and f">{name}<" not in page
    ] == []
    for html in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe|link)[^>]*(?:src|href)=\"?(https?:)?//", html.read_text("utf-8"))
        assert loaded == [], html.name
