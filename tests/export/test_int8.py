"""ONNX with 8-bit inputs: which nodes become integers, and that outputs stay near those of float inputs."""

import pytest

onnx = pytest.importorskip("onnx", reason='needs onnx: pip install "waterfill[export]"')
pytest.importorskip("onnxruntime", reason='needs onnxruntime: pip install "waterfill[export]"')

import torch
import torch.nn.functional as F
from tests.support.exported import distance, outputs, reader
from torch import Tensor, nn

import waterfill
from waterfill.errors import BadInput
from waterfill.export import How, Network, export
from waterfill.export.onnx.write import run

INT8 = How(force=True, activations=8)


class Residual(nn.Module):
    """What int8 networks are made of: norms, a sum, pooling, a join, a convolution in groups without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.again, self.other = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.left, self.right = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 3, padding=1, groups=2, bias=False)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.max_pool2d(F.relu(x + self.other(self.again(x))), 2)
        x = torch.cat([F.relu(self.left(x)), self.right(x)], 1)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture(scope="module")
def residual() -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    model = Residual().train()
    batches = [torch.randn(16, 3, 12, 12) for _ in range(3)]
    for batch in batches:
        model(batch)  # statistics of the norms
    return model.eval(), batches


def kinds(path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("spec", ["InFormat(format='onnx')", "Quantize(bits=4)", "Quantize(bits=8)"])
def test_convolutions_run_on_integers_and_say_nearly_the_same(residual, tmp_path, spec):
    model, batches = residual
    made = waterfill.compress(model, spec=spec, **({} if "bits" in spec else {"price": 1e-7}))
    plain = export(made, tmp_path / "plain.onnx", "onnx", Network(model, batches), How(force=True))
    done = export(made, tmp_path / "int8.onnx", "onnx", Network(model, batches), INT8)
    forms = {row.name: row.form for row in done.rows}
    assert all(forms[f"{name}.weight"].endswith("8-bit products") for name in ("first", "again", "left", "right"))
    assert forms["norm.running_var"] == "folded into first.weight"
    assert "BatchNormalization" not in kinds(tmp_path / "int8.onnx")
    fresh = torch.randn(8, 3, 12, 12)  # not seen by the calibration
    wanted = outputs(model, made, fresh)
    assert distance(run(tmp_path / "plain.onnx", [fresh]), wanted) < 1e-4
    assert 1e-4 < distance(run(tmp_path / "int8.onnx", [fresh]), wanted) < 0.05
    assert done.size < plain.size + 8000  # codes are held in as many bits; scales of values are few


def test_codes_with_several_scales_stay_floats_and_say_why(residual, tmp_path):
    model, batches = residual
    made = waterfill.compress(model, spec={"again": "Quantize(bits=4, group=9)", "*": "Quantize(bits=4)"})
    done = export(made, tmp_path / "a.onnx", "onnx", Network(model, batches), INT8)
    rows = {row.name: row for row in done.rows}
    assert (
        rows["again.weight"].form == "restored at load" and "more than a scale for each row" in rows["again.weight"].why
    )
    assert rows["first.weight"].form.endswith("8-bit products")
    assert done.difference < 0.05


@pytest.mark.parametrize("bits", [5, 8])
def test_recurrent_layers_run_on_integers(tmp_path, bits):
    model, x = reader()
    made = waterfill.compress(model, spec=f"Quantize(bits={bits})")
    done = export(made, tmp_path / "a.onnx", "onnx", Network(model, [x]), INT8)
    assert {row.form for row in done.rows if "weight_" in row.name} == {f"{bits}-bit codes, 8-bit products"}
    assert {"DynamicQuantizeLSTM", "DynamicQuantizeMatMul"} <= set(kinds(tmp_path / "a.onnx"))
    assert done.difference < 0.05


def test_what_cannot_be_rounded_is_refused(residual, tmp_path):
    model, batches = residual
    made = waterfill.compress(model, spec="Quantize(bits=4)")
    with pytest.raises(BadInput, match="activations=4: inputs are rounded to 8 bits"):
        How(activations=4)
    poisoned = [batches[0], torch.full_like(batches[0], float("nan"))]
    with pytest.raises(BadInput, match="values that are not finite flow through the network"):
        export(made, tmp_path / "a.onnx", "onnx", Network(model, poisoned), INT8)
    assert not (tmp_path / "a.onnx").exists()
