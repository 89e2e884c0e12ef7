"""Files of ONNX are run by ONNX Runtime and compared with the restored network in PyTorch."""

import copy

import pytest
import torch
from tests.support.exported import distance, outputs, reader, small, viewer
from torch import nn

pytest.importorskip("onnx", reason='needs onnx: pip install "waterfill[export]"')
pytest.importorskip("onnxruntime", reason='needs onnxruntime: pip install "waterfill[export]"')

import onnx

import waterfill
from waterfill.errors import BadInput, CannotExport, Mismatch, OutputExists
from waterfill.export import How, Network, export
from waterfill.export.onnx.write import run

EXACT = 3e-6  # float sums in another order
BY_INT8 = 2e-2  # inputs of 8 bits


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def test_integers_of_linear_layers_and_embeddings_stay_integers_and_give_the_same_outputs(tmp_path):
    model, x = reader()
    made = small(model, "Quantize(bits=4, group=32)")
    done = export(made, tmp_path / "a.onnx", "onnx", Network(model, [x]))
    assert operators(done.path).count("MatMulNBits") == 3 and operators(done.path).count("GatherBlockQuantized") == 1
    assert done.difference < EXACT
    longer = torch.randint(0, 48, (5, 11))  # the file was traced with [3, 7]
    assert distance(run(done.path, [longer]), outputs(model, made, longer)) < EXACT
    forms = {row.name: row.form for row in done.rows}
    assert forms["hidden.weight"] == forms["embedding.weight"] == "integers, multiplied from"
    assert forms["lstm.weight_hh_l0"] == "restored at load"
    assert done.size == done.path.stat().st_size < 0.25 * 4 * made.weights  # the embedding, tied, is there once


@pytest.mark.parametrize(
    ("spec", "bits", "most"),
    [
        ("Quantize(bits=2, group=64)", 2, BY_INT8),
        ("Quantize(bits=3, group=32, symmetric=False)", 4, EXACT),
        ("Quantize(bits=8)", 8, BY_INT8),
        ("Quantize(bits=4, group=48)", 4, EXACT),  # a group of three blocks
        ("Quantize()", 8, BY_INT8),  # scales of columns too
        ("LowRank(rank=4, factors=Quantize(bits=4, group=32)) + Quantize(bits=4, group=32)", 4, EXACT),
        ('Codebook(values="ternary")', 2, BY_INT8),
    ],
)
def test_each_form_of_codes_is_multiplied_from(spec, bits, most, tmp_path):
    model, x = reader()
    made = small(model, spec)
    done = export(made, tmp_path / "a.onnx", "onnx", Network(model, [x]))
    found = [node for node in onnx.load(done.path).graph.node if node.op_type == "MatMulNBits"]
    assert found and bits in {each.i for node in found for each in node.attribute if each.name == "bits"}
    assert distance(run(done.path, [x]), outputs(model, made, x)) < most


@pytest.mark.parametrize(
    "spec",
    [
        *("Codebook(levels=5)", "Prune(keep=0.1)", "Prune(keep=0.8)", 'Prune(pattern="columns", keep=0.5)'),
        *("Quantize(bits=4, group=12)", "Quantize(bits=5, group=16)", "Quantize()", "LowRank(rank=2)"),
    ],
)
def test_whatever_no_operator_multiplies_from_is_small_in_the_file_and_restored(spec, tmp_path):
    model, x = viewer()
    made = small(model, spec)
    done = export(made, tmp_path / "a.onnx", "onnx", Network(model, [x]))
    assert distance(run(done.path, [x]), outputs(model, made, x)) < EXACT
    rows = {row.name: row for row in done.rows}
    dense = 4 * model.conv2.weight.numel()
    assert rows["conv2.weight"].form == "restored at load"
    assert rows["conv2.weight"].bytes < dense * {"Prune(keep=0.8)": 1.01}.get(spec, 0.7)


def test_a_form_that_is_not_held_is_rounded_again_only_when_asked_and_says_what_that_loses(tmp_path):
    model, x = reader()
    made = small(model, "Codebook(levels=5)")
    plain = export(made, tmp_path / "plain.onnx", "onnx", Network(model, [x]))
    row = next(row for row in plain.rows if row.name == "hidden.weight")
    assert "no operator" in row.why and plain.loss == 0
    again = export(made, tmp_path / "again.onnx", "onnx", Network(model, [x]), How(requantize=4, group=32))
    row = next(row for row in again.rows if row.name == "hidden.weight")
    assert row.form == "integers, multiplied from" and 0.01 < row.loss < 0.2 and again.difference > EXACT


def test_a_network_of_half_floats_and_one_compressed_without_loss_run_in_float32(tmp_path):
    model, x = viewer()
    half = copy.deepcopy(model).bfloat16()
    made = small(half, "Quantize(bits=4, group=16)")
    done = export(made, tmp_path / "a.onnx", "onnx", Network(half, [x]))
    assert done.difference < 4e-3  # PyTorch has the weights rounded to bfloat16, the file as they are
    exact = waterfill.compress(model, lossless=True)
    done = export(exact, tmp_path / "b.onnx", "onnx", Network(model, [x]))
    with torch.no_grad():
        assert distance(run(done.path, [x]), model(x)) < EXACT


class Odd(nn.Module):
    """A network with an operator that ONNX does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x):
        return torch.linalg.svdvals(self.linear(x)) if x.ndim == 2 else torch.special.bessel_j0(self.linear(x))


def test_what_cannot_be_exported_is_named(tmp_path):
    model, x = viewer()
    made = small(model, "Quantize(bits=4, group=16)")
    with pytest.raises(BadInput, match="--network"):
        export(made, tmp_path / "a.onnx", "onnx")
    with pytest.raises(BadInput, match="no batches"):
        export(made, tmp_path / "a.onnx", "onnx", Network(model, []))
    with pytest.raises(BadInput, match="takes these alone|tensors alone"):
        export(made, tmp_path / "a.onnx", "onnx", Network(model, [{"x": x, "label": x}]))
    with pytest.raises(Mismatch, match="does not fit a Linear"):
        export(made, tmp_path / "a.onnx", "onnx", Network(nn.Linear(2, 2), [x]))
    odd = Odd()
    with pytest.raises(CannotExport, match="cannot write a Odd as ONNX: .*bessel_j0"):
        export(
            small(odd, "Quantize(bits=4, group=16)"),
            tmp_path / "a.onnx",
            "onnx",
            Network(odd, [x[:, 0, :2, :8].reshape(4, 1, 16)]),
        )
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.onnx").write_text("here")
    with pytest.raises(OutputExists):
        export(made, tmp_path / "a.onnx", "onnx", Network(model, [x]))
    assert (tmp_path / "a.onnx").read_text() == "here"
