"""Files of OpenVINO are compiled and run by it, and compared with the restored network in PyTorch."""

import pytest
import torch
from tests.support.exported import distance, outputs, reader, small, viewer

pytest.importorskip("openvino", reason='needs openvino: pip install "waterfill[export]"')
pytest.importorskip("onnx", reason='needs onnx: pip install "waterfill[export]"')

import openvino

from waterfill.errors import BadInput, OutputExists
from waterfill.export import How, Network, export
from waterfill.export.openvino.write import run

EXACT = 1e-5


def types_in_memory(path):
    """The types of the constants of the compiled network."""
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    nodes = compiled.get_runtime_model().get_ordered_ops()
    told = [node.get_rt_info() for node in nodes]
    return [each["outputPrecisions"].value for each in told if each["layerType"].value == "Const"]


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("Quantize(bits=4, group=32)", "i4"),
        ("Quantize(bits=4, group=32, symmetric=False)", "u4"),
        ("Quantize(bits=2, group=32)", "u2"),
        ("Quantize(bits=8)", "i8"),
        ("Quantize()", "i8"),
    ],
)
def test_integers_of_linear_layers_stay_integers_in_memory(spec, kind, tmp_path):
    model, x = reader()
    made = small(model, spec)
    done = export(made, tmp_path / "a.xml", "openvino", Network(model, [x]))
    assert done.difference < EXACT
    longer = torch.randint(0, 48, (5, 11))
    assert distance(run(done.path, [longer]), outputs(model, made, longer)) < EXACT
    assert types_in_memory(done.path).count(kind) >= 2  # hidden, back
    forms = {row.name: row.form for row in done.rows}
    assert forms["hidden.weight"] == "integers, multiplied from"
    assert done.size == sum(path.stat().st_size for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    "spec",
    [
        *("Codebook(levels=5)", "Prune(keep=0.1)", 'Prune(pattern="columns", keep=0.5)', "Quantize(bits=5, group=16)"),
        *("LowRank(rank=4, factors=Quantize(bits=4)) + Quantize(bits=4)", "Quantize()"),
    ],
)
@pytest.mark.parametrize("build", [reader, viewer])
def test_every_form_gives_the_same_outputs(spec, build, tmp_path):
    model, x = build()
    made = small(model, spec)
    done = export(made, tmp_path / "a.xml", "openvino", Network(model, [x]))
    assert distance(run(done.path, [x]), outputs(model, made, x)) < EXACT


def test_what_is_there_stays_and_what_fails_leaves_nothing(tmp_path):
    model, x = viewer()
    made = small(model, "Quantize(bits=4, group=16)")
    with pytest.raises(BadInput, match=r"ends in \.xml"):
        export(made, tmp_path / "a.onnx", "openvino", Network(model, [x]))
    (tmp_path / "a.bin").write_text("here")
    with pytest.raises(OutputExists):
        export(made, tmp_path / "a.xml", "openvino", Network(model, [x]))
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    export(made, tmp_path / "a.xml", "openvino", Network(model, [x]), How(force=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.xml"]
