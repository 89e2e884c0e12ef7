"""A budget in the format of another tool: its own file has no more bytes, and nothing has to be rounded once more."""

import pytest

pytest.importorskip("onnx", reason='needs onnx: pip install "waterfill[export]"')

import torch
from safetensors.torch import save_file
from tests.support.exported import reader, viewer

import waterfill
from waterfill import Importance, Options
from waterfill.errors import BadRecipe, BudgetError
from waterfill.export import How, Network, beside, export
from waterfill.export.front import format_named
from waterfill.part.formats import FORMATS
from waterfill.parts import InFormat

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
QUIET = {"progress": False, "threads": 1}


@pytest.mark.parametrize("to", ["onnx", "openvino"])
@pytest.mark.parametrize("network", [viewer, reader])
def test_a_network_takes_no_more_than_the_budget_where_it_runs(tmp_path, to, network):
    pytest.importorskip(RUNTIMES[to], reason='needs the runtime: pip install "waterfill[export]"')
    model, x = network()
    graph = beside(model, [x], to)
    lost, nodes = [], FORMATS[to].each * sum(value.ndim > 1 for value in model.parameters())
    for share in (0.17, 0.26):  # of the weights as float32
        allowed = graph + nodes + int(share * 4 * sum(value.numel() for value in model.parameters()))
        made = waterfill.compress(model, size=allowed, format=to, options=Options(beside=graph, **QUIET))
        done = export(
            made, tmp_path / ("a.onnx" if to == "onnx" else "a.xml"), to, Network(model, [x]), How(force=True)
        )
        assert 0.6 * allowed < done.size <= allowed
        assert done.loss == 0 and done.difference < 0.02  # 8-bit codes are multiplied with rounded inputs
        assert made.notes["budget"].endswith(f"bytes in a file of {to}")
        lost.append(sum(entry.error or 0 for entry in made.entries.values()))
    assert lost[1] < lost[0]


@pytest.mark.parametrize("to", ["onnx", "openvino", "gguf", "compressed-tensors"])
def test_every_form_is_one_that_the_export_holds_as_it_is(to):
    target = torch.randn(40, 512, generator=torch.Generator().manual_seed(1))
    found = [InFormat(format=to).fit(target, Importance(), price) for price in (1e2, 1.0, 1e-2, 1e-4)]
    assert all(format_named(to).can(part) is None for part in found)
    errors = [float((target - part.dense()).norm()) for part in found]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.3 * errors[0]  # a lower price, more bits


def test_a_checkpoint_and_an_engine_give_the_same_codes(tmp_path):
    from waterfill.compression.engine.engine import Serial

    save_file({"a": torch.randn(64, 96), "b": torch.randn(96, 64), "n": torch.randn(64)}, tmp_path / "m.safetensors")
    how = {"size": 12_000, "format": "gguf"}
    for name, engine in (("a.wf", None), ("b.wf", Serial())):
        waterfill.compress_file(
            tmp_path / "m.safetensors", tmp_path / name, **how, options=Options(**QUIET), engine=engine
        )
    assert (tmp_path / "a.wf").read_bytes() == (tmp_path / "b.wf").read_bytes()
    assert waterfill.load(tmp_path / "a.wf").notes["recipe"] == "InFormat(format='gguf')"


def test_what_has_no_meaning_is_refused():
    weights = {"a.weight": torch.randn(64, 64)}
    for wrong, told in (
        ({"format": "tflite"}, "format='tflite' is none that budgets know; give one of onnx, "),
        ({"format": "gguf", "options": Options(runs="packed")}, "are two budgets; give one of them"),
        ({"format": "gguf", "spec": "LowRank()"}, "LowRank.* has no bits to choose of those that gguf has"),
        ({"format": "gguf", "lossless": True}, "lossless=True keeps every tensor bit for bit: leave runs='gguf' out"),
    ):
        with pytest.raises(BadRecipe, match=told):
            waterfill.compress(weights, **wrong)
    with pytest.raises(BudgetError, match="the smallest that this recipe can make has"):
        waterfill.compress(weights, bits=1, format="gguf")
