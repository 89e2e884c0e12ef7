"""Many files of one network in a table, and the weights that matter: known answers, and going on after a crash."""

import json
import xml.etree.ElementTree as ET

import pytest
import torch
from torch import nn

import waterfill
from waterfill import Options, Steps, report
from waterfill.errors import BadInput, BadRecipe, PlanMismatch
from waterfill.report.rounding import rounded_matrix

QUIET = Options(steps=Steps(stages=0, repair=False, probes=1), progress=False)
FIXED = "Quantize(bits=8, group=32)"


def held_out(place) -> list:
    return list(zip(place.inputs.split(24), place.labels.split(24), strict=True))


def small() -> dict[str, torch.Tensor]:
    """A network of two matrices."""
    random = torch.Generator().manual_seed(5)
    return {name: torch.randn(24, 40, generator=random) for name in ("a.weight", "b.weight")}


def test_a_row_is_the_file_that_compress_makes() -> None:
    table = report.compare(small(), recipes=["Quantize()"], bits=[3, 5])
    for row in table.rows:
        made = waterfill.compress(small(), spec="Quantize()", bits=row.asked)
        assert (row.bytes, row.bits) == (made.size, pytest.approx(made.bits))
        assert row.nats > 0 and row.bound < row.rate
    assert table.rows[0].nats > table.rows[1].nats


def test_a_recipe_may_differ_by_name() -> None:
    by_name = "a.*: Quantize(bits=2, group=8); *: Quantize(bits=8, group=8)"
    table = report.compare(small(), recipes=[by_name, "Quantize(bits=8, group=8)"])
    mixed, fine = table.rows
    assert mixed.asked is None and mixed.bytes < fine.bytes and mixed.nats > fine.nats


def test_with_inputs_a_row_has_a_quality() -> None:
    model, inputs = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 10)), torch.randn(64, 12)
    held = [(inputs, model(inputs).argmax(1))]
    recipes = ["Quantize(bits=2, group=12)", "Quantize(bits=8, group=12)"]
    table = report.compare(model, inputs.split(32), recipes=recipes, held_out=held, options=QUIET)
    assert table.metric == "accuracy" and table.original == 1.0 and table.better == 1 and table.measured
    assert [row.series for row in table.rows] == recipes
    coarse, fine = table.rows
    assert coarse.quality < fine.quality > 0.9 and fine.doubt is not None and coarse.nats > fine.nats
    assert fine.asked is None  # its rate is its own
    assert "accuracy" in table.text() and "100.00 %" in table.text()


def test_rounding_is_what_rounding_does(place) -> None:
    table = report.compare(
        place.model, recipes=[], bits=[4], held_out=held_out(place), metric="divergence", rounding=True
    )
    assert [row.asked for row in table.rows] == [2, 3, 4, 5, 6, 8]
    network = type(place.model)()
    state = place.model.state_dict()
    for name in ("conv1", "conv2", "up", "hidden", "head"):
        weight = state[f"{name}.weight"]
        state[f"{name}.weight"] = rounded_matrix(weight.flatten(1), 3).reshape(weight.shape)
    network.load_state_dict(state)
    known = waterfill.evaluate(network, held_out(place), reference=place.model).divergence
    assert table.rows[1].quality == pytest.approx(known, rel=1e-4)
    assert table.rows[-1].quality < table.rows[0].quality


def test_opponents_are_measured_alike(place) -> None:
    state = place.model.state_dict()
    table = report.compare(
        place.model,
        recipes=[],
        bits=[3, 2],
        held_out=held_out(place),
        others={"itself": lambda bits: (int(bits), state)},
    )
    assert [(row.series, row.bytes, row.quality) for row in table.rows] == [("itself", 3, 1.0), ("itself", 2, 1.0)]


def test_rows_are_kept_and_gone_on_from(place, tmp_path, monkeypatch) -> None:
    work = tmp_path / "table.json"
    made: list[float] = []
    state = place.model.state_dict()

    def opponent(bits: float) -> tuple[int, dict]:
        made.append(bits)
        if bits == 3:
            raise KeyboardInterrupt
        return 100, state

    call = {"recipes": [], "held_out": held_out(place), "others": {"x": opponent}, "work": work}
    with pytest.raises(KeyboardInterrupt):
        report.compare(place.model, bits=[4, 3], **call)
    assert made == [4, 3] and [row.asked for row in report.Comparison.load(work).rows] == [4]
    call["others"] = {"x": lambda bits: (50, state)}
    table = report.compare(place.model, bits=[4, 3, 2], **call)
    assert [row.bytes for row in table.rows] == [100, 50, 50]
    assert [row.asked for row in report.compare(place.model, bits=[2], **call).rows] == [2]
    with pytest.raises(PlanMismatch, match="its metric"):
        report.compare(place.model, bits=[2], metric="nats", **call)
    with torch.no_grad():
        other = type(place.model)()
    with pytest.raises(PlanMismatch, match="its weights"):
        report.compare(other, bits=[2], **call)
    work.write_text("[]")
    with pytest.raises(BadInput, match="no JSON of `waterfill compare`"):
        report.compare(place.model, bits=[2], **call)


def test_a_size_that_cannot_be_is_a_remark() -> None:
    table = report.compare(small(), recipes=["Quantize()"], bits=[0.1, 4])
    tiny, fine = table.rows
    assert tiny.bytes == 0 and "bytes" in tiny.remark and fine.bytes > 0
    assert tiny.remark in table.text()
    assert len(table.chart().series[-1].points) == 1


def test_a_comparison_survives_json_and_is_drawn(place, tmp_path) -> None:
    work = tmp_path / "table.json"
    table = report.compare(place.model, recipes=[FIXED], held_out=held_out(place), rounding=True, work=work)
    assert report.Comparison.load(work) == table and json.dumps(table.as_json())
    root = ET.fromstring(table.svg())
    assert any(tag.text == "original" for tag in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "<table" in table._repr_html_()


def test_what_cannot_be_run_is_refused(place) -> None:
    with pytest.raises(BadInput, match="run by a module"):
        report.compare(place.model.state_dict(), place.inputs.split(24))
    with pytest.raises(BadRecipe):
        report.compare(place.model, recipes=["Nothing()"], bits=[4])
    with pytest.raises(BadInput, match="run by a module"):
        report.sensitivity(place.model.state_dict(), place.inputs.split(24))
    for bits in ([], [1], [9], [2.5]):
        with pytest.raises(BadRecipe, match="from 2 to 8"):
            report.sensitivity(place.model, bits=bits)


def test_a_measured_loss_is_the_divergence_with_that_weight_rounded(place) -> None:
    found = report.sensitivity(place.model, place.inputs.split(24), bits=[2, 8])
    losses = {row.name: row.losses for row in found.rows}
    assert set(losses) == {f"{name}.weight" for name in ("conv1", "conv2", "up", "hidden", "head")}
    assert "measured" in found.unit
    network = type(place.model)()
    state = place.model.state_dict()
    weight = state["hidden.weight"]
    network.load_state_dict(state | {"hidden.weight": rounded_matrix(weight, 2)})
    known = waterfill.evaluate(network, place.inputs.split(24), reference=place.model).divergence
    assert losses["hidden.weight"][2] == pytest.approx(known, rel=1e-4)
    assert all(loss[8] < loss[2] for loss in losses.values())


def test_a_predicted_loss_is_that_of_the_importance() -> None:
    """For one linear layer whose inputs are white the cost is half the squared error times what outputs weigh: 4 times
    as much for weights twice as large."""
    random = torch.Generator().manual_seed(5)
    weight = torch.randn(32, 128, generator=random)
    found = report.sensitivity({"a": weight, "b": weight * 2}, bits=[3])
    a, b = (row.losses[3] for row in found.rows)
    assert b == pytest.approx(a) or b == pytest.approx(4 * a)  # as without data costs are relative or not
    inputs = torch.randn(512, 128, generator=random).split(64)
    model = nn.Sequential(nn.Linear(128, 32, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(weight * 0.1)
    predicted = report.sensitivity(model, inputs, bits=[4], predicted=True)
    assert "predicted" in predicted.unit and predicted.rows[0].losses[4] > 0


def test_predictions_and_measurements_agree_on_what_matters(place) -> None:
    batches = place.inputs.split(24)
    measured = {row.name: row.losses[3] for row in report.sensitivity(place.model, batches, bits=[3]).rows}
    found = report.sensitivity(place.model, batches, bits=[3], predicted=True)
    predicted = {row.name: row.losses[3] for row in found.rows}
    least = min(measured, key=measured.__getitem__)
    assert predicted[least] < max(predicted.values()) / 2


def test_a_sensitivity_goes_on_and_leaves_the_model_alone(place, tmp_path) -> None:
    before = {name: value.clone() for name, value in place.model.state_dict().items()}
    work = tmp_path / "losses.json"
    found = report.sensitivity(place.model, place.inputs.split(24), bits=[4], work=work)
    held = json.loads(work.read_text())
    name = found.rows[0].name
    held["rows"][name]["losses"]["4"] = 123.0
    del held["rows"][found.rows[-1].name]
    work.write_text(json.dumps(held))
    again = report.sensitivity(place.model, place.inputs.split(24), bits=[4], work=work)
    assert again.ordered()[0].name == name and again.ordered()[0].losses[4] == 123.0
    assert {row.name for row in again.rows} == {row.name for row in found.rows}
    assert report.Sensitivity.load(work).rows == again.rows and "123" in again.text() and "123" in again._repr_html_()
    assert all(torch.equal(value, before[name]) for name, value in place.model.state_dict().items())
    with pytest.raises(PlanMismatch, match="its bits"):
        report.sensitivity(place.model, place.inputs.split(24), bits=[3], work=work)


class Fragile(nn.Module):
    """Outputs that are infinite as soon as the weight is not exactly as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Linear(16, 8)
        self.fragile = nn.Linear(16, 8)
        self.register_buffer("known", self.fragile.weight.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        broken = bool((self.fragile.weight != self.known).any())
        return self.fine(x) + (torch.inf if broken else 0.0)


def test_outputs_that_break_are_an_infinite_loss_not_the_end(tmp_path) -> None:
    model, inputs = Fragile(), torch.randn(20, 16).split(10)
    found = report.sensitivity(model, inputs, bits=[2], work=tmp_path / "losses.json")
    losses = {row.name: row.losses[2] for row in found.rows}
    assert losses["fragile.weight"] == float("inf") > losses["fine.weight"]
    assert report.Sensitivity.load(tmp_path / "losses.json").rows == found.rows and "∞" in found.text()
    table = report.compare(model, recipes=["Quantize(bits=4, group=16)"], held_out=inputs, metric="divergence")
    (row,) = table.rows
    assert row.bytes > 0 and row.quality is None and row.remark in table.text()
    made = waterfill.compress(model, spec="Quantize(bits=4, group=16)")
    described = report.describe(made, against=model, sensitivity=found)
    assert "∞" in described.html() and json.dumps(described.as_json(), allow_nan=False)
