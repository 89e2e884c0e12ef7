"""Weights that the data say nothing about cost what a typical one of their size does, and the table warns of them."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import waterfill
from waterfill.calibration.calibrate import calibrate
from waterfill.cli import main
from waterfill.compression.options import Steps
from waterfill.compression.task import Task


class Layers(nn.Module):
    """Square layers in a row, and one of the same size that nothing runs through."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(48, 48) for _ in range(5))
        self.spare = nn.Linear(48, 48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x)) + 0.5 * x
        return self.head(x)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Layers().eval()


BATCHES = list((torch.randn(192, 24, generator=torch.Generator().manual_seed(2)).repeat(1, 2)).split(64))
QUICK = Steps(stages=0, repair=False)


@pytest.mark.parametrize(
    ("bits", "scale"), [(4, 1.0), *(pytest.param(2, scale, marks=pytest.mark.slow) for scale in (1e-2, 1e2))]
)
def test_a_weight_out_of_reach_gets_the_bits_of_its_neighbors(net, scale, bits) -> None:
    model = copy.deepcopy(net)
    with torch.no_grad():
        model.head.weight *= scale  # the unit that errors are measured in
        model.head.bias *= scale
    made = waterfill.compress(model, BATCHES, spec="Quantize()", bits=bits, options=waterfill.Options(steps=QUICK))
    spent = {row["name"]: row["bits"] for row in made.table()}
    typical = float(np.median([spent[f"layers.{i}.weight"] for i in range(5)]))
    assert typical - 0.8 < spent["spare.weight"] < typical + 0.8
    assert abs(spent["spare.bias"] - spent["layers.2.bias"]) < 4


def test_the_unit_of_the_outputs_changes_no_cost(net) -> None:
    model = copy.deepcopy(net)
    with torch.no_grad():
        model.head.weight *= 8
        model.head.bias *= 8
    small, large = (
        {w.name: w.factor for w in Task.of(m, "Quantize()", calibrate(m, BATCHES)).weights} for m in (net, model)
    )
    assert large["spare.weight"] == pytest.approx(small["spare.weight"], rel=0.01)
    assert large["layers.0.weight"] == small["layers.0.weight"] == 1


def test_importance_of_the_users_own_changes_no_other_weight(net) -> None:
    given = {"layers.0.weight": waterfill.Importance(torch.tensor(100.0))}
    work = Task.of(net, "Quantize()", given)
    assert {w.factor for w in work.weights} == {1.0} and "warnings" not in work.notes


def test_the_table_warns_and_the_warning_travels_with_the_file(net, tmp_path, capsys) -> None:
    made = waterfill.compress(net, BATCHES, spec="Quantize()", bits=4, options=waterfill.Options(steps=Steps(stages=2)))
    warned = {row["name"]: row["warning"] for row in made.table() if row["warning"]}
    assert set(warned) == {"spare.weight", "spare.bias"} and "no batch reaches it" in warned["spare.weight"]
    assert {row["reason"] for row in made.table()} == {"", "one-dimensional"}
    made.save(tmp_path / "m.wf")
    assert waterfill.load(tmp_path / "m.wf").warnings == warned == made.warnings
    assert main(["info", str(tmp_path / "m.wf")]) == 0
    told = capsys.readouterr().out
    mark = next(line.split()[0] for line in told.splitlines() if "warning: no batch reaches it" in line)
    assert all((mark in line) == line.startswith("spare.") for line in told.splitlines() if "x48" in line)
    assert main(["info", "--json", str(tmp_path / "m.wf")]) == 0
    rows = json.loads(capsys.readouterr().out)["tensors"]
    assert {row["name"]: row["warning"] for row in rows if row["warning"]} == warned


@pytest.mark.parametrize("warnings", [3, [], None, {"spare.weight": 4, "ghost": []}], ids=str)
def test_warnings_that_no_writer_would_write_do_no_harm(net, tmp_path, warnings, capsys) -> None:
    made = waterfill.compress(net, bits=6)
    made.notes["warnings"] = warnings
    made.save(tmp_path / "m.wf")
    assert len(waterfill.load(tmp_path / "m.wf").table()) == 14
    assert main(["info", str(tmp_path / "m.wf")]) == 0 and "ghost" not in capsys.readouterr().out
