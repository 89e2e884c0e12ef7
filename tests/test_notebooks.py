"""The notebooks run from top to bottom, at toy size, and hold no outputs."""

import contextlib
import io
import json
from pathlib import Path

import pytest
from tests.support.places import CHECKOUT

NOTEBOOKS = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))
WHOLE, TOY = "EPOCHS, WIDTH = 30, 64", "EPOCHS, WIDTH = 1, 12"
SAID = {
    "smaller_file": ["times smaller", " 2 bits: inputs", "features.0.weight", "head.bias", "points"],
    "faster_network": ["% packed", "64 at once", "% trained", "times smaller"],
    "which_method": ["the default", "Quantize() + LowRank()", "of the energy in", "head.weight"],
}


def code(path: Path) -> list[str]:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == sorted(SAID)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_kept(path):
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
        assert max(map(len, cell["source"])) <= 400


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path, tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install 'waterfill[demo]'")
    monkeypatch.chdir(tmp_path)
    cells = code(path)
    assert WHOLE in cells[0]
    said, names = io.StringIO(), {"__name__": path.stem}
    with contextlib.redirect_stdout(said):
        for number, cell in enumerate(cells):
            exec(compile(cell.replace(WHOLE, TOY), f"{path.name}, cell {number}", "exec"), names)
    assert [words for words in SAID[path.stem] if words not in said.getvalue()] == []
