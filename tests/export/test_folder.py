"""Dense folders and files, and what every format refuses before any work."""

import errno
import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from tests.support.exported import small, viewer

import waterfill
from waterfill.errors import BadInput, CannotExport, OutputExists
from waterfill.export import How, Network, export
from waterfill.export.safetensors import SafetensorsWriter


@pytest.fixture
def model_and_file(tmp_path):
    model, _ = viewer()
    made = small(model, "Quantize(bits=4, group=16)")
    made.save(tmp_path / "net.wf")
    return made, tmp_path / "net.wf"


def test_shards_hold_every_tensor_once_and_the_index_knows_where(model_and_file, tmp_path):
    made, file = model_and_file
    done = export(file, tmp_path / "out", "safetensors", how=How(shard=6000))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) >= 3 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    found = {name: value for path in files for name, value in load_file(path).items()}
    state = made.state_dict()
    assert set(found) == set(index) == set(state) and all(torch.equal(found[name], state[name]) for name in state)
    assert all(name in load_file(tmp_path / "out" / shard) for name, shard in index.items())
    assert done.size == sum(path.stat().st_size for path in files)


def test_one_file_and_another_type(model_and_file, tmp_path):
    made, file = model_and_file
    export(file, tmp_path / "out.safetensors", "safetensors", how=How(dtype="bfloat16"))
    found = load_file(tmp_path / "out.safetensors")
    weight = made.state_dict()["conv1.weight"]
    assert found["conv1.weight"].dtype == torch.bfloat16 and torch.equal(found["conv1.weight"], weight.bfloat16())
    assert found["norm.num_batches_tracked"].dtype == torch.int64


def test_an_output_that_is_there_is_replaced_only_if_it_is_ours_and_that_was_asked_for(model_and_file, tmp_path):
    _, file = model_and_file
    out = tmp_path / "out"
    export(file, out, "safetensors")
    with pytest.raises(OutputExists, match="--force"):
        export(file, out, "safetensors")
    export(file, out, "safetensors", how=How(force=True, dtype="float16"))
    assert load_file(out / "model.safetensors")["conv1.weight"].dtype == torch.float16
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExists, match="never replaced"):
        export(file, other, "safetensors", how=How(force=True))
    assert (other / "thesis.tex").exists()
    with pytest.raises(BadInput, match="does not exist"):
        export(file, tmp_path / "no" / "where", "safetensors")


def test_a_full_disk_leaves_what_was_there_and_nothing_else(model_and_file, tmp_path, monkeypatch):
    _, file = model_and_file
    export(file, tmp_path / "out", "safetensors")
    before = sorted(tmp_path.rglob("*"))
    written = []

    def full(self, tensor):
        written.append(tensor)
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SafetensorsWriter, "add", full)
    with pytest.raises(OSError, match="No space"):
        export(file, tmp_path / "out", "safetensors", how=How(force=True))
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_arguments_are_named(model_and_file, tmp_path):
    _, file = model_and_file
    with pytest.raises(BadInput, match="'tflite' is no format"):
        export(file, tmp_path / "out", "tflite")
    with pytest.raises(BadInput, match="requantize=9"):
        How(requantize=9)
    with pytest.raises(BadInput, match="dtype='int8'"):
        export(file, tmp_path / "out", "safetensors", how=How(dtype="int8"))


def test_a_library_that_is_missing_is_named_with_its_extra(model_and_file, tmp_path, monkeypatch):
    model, x = viewer()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(CannotExport, match=r"needs onnx .*waterfill\[export\]"):
        export(model_and_file[1], tmp_path / "net.onnx", "onnx", Network(model, [x]))
    assert not (tmp_path / "net.onnx").exists()


def test_a_lossless_file_leaves_bit_for_bit(tmp_path):
    model, _ = viewer()
    waterfill.compress(model, lossless=True).save(tmp_path / "net.wf")
    export(tmp_path / "net.wf", tmp_path / "out", "safetensors")
    found, state = load_file(tmp_path / "out" / "model.safetensors"), model.state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)
