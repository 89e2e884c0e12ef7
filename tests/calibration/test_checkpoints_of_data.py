"""Every trained network of the data folder: compressed within its budget, as small as promised, and read back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import waterfill
from waterfill import Options

SMALL = ("mnist_lenet300", "tinystories_llama260k", "shakespeare_charlstm", "cifar10_resnet20")
LARGE = (
    "cifar10_resnet32",
    "cifar10_resnet56",
    "imagenet_mobilenetv1_025",
    "imagenet_squeezenet11",
    "gpt2_small_attention_3",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_three_bits_per_weight(data_file, tmp_path, name):
    source: Path = data_file(f"{name}.safetensors")
    planned = waterfill.plan_file(source, bits=3)
    summary = waterfill.compress_file(source, tmp_path / "m.wf", bits=3, options=Options(threads=1))
    assert summary.size == (tmp_path / "m.wf").stat().st_size
    assert 0.98 * 3 <= summary.bits <= 3
    assert planned.size == pytest.approx(summary.size, rel=0.05)
    model = waterfill.load(tmp_path / "m.wf")
    promised = sum(part.bits for entry in model.entries.values() for part in entry.parts) / 8
    blobs = sum(row["bytes"] for row in summary.rows)
    assert abs(blobs - promised) <= 0.01 * blobs + 64 * len(model.entries) / 8
    original, restored = load_file(source), model.state_dict()
    assert sorted(restored) == sorted(original)
    for tensor_name, tensor in original.items():
        assert restored[tensor_name].dtype == tensor.dtype and restored[tensor_name].shape == tensor.shape
    errors = [row["error"] for row in summary.rows if not row["reason"]]
    assert max(errors) < 1 and sum(errors) / len(errors) < 0.45


@pytest.mark.slow
@pytest.mark.parametrize("name", [SMALL[0], SMALL[3]])
def test_lossless(data_file, tmp_path, name):
    source: Path = data_file(f"{name}.safetensors")
    summary = waterfill.compress_file(source, tmp_path / "m.wf", lossless=True)
    restored = waterfill.load(tmp_path / "m.wf").state_dict()
    assert all(torch.equal(restored[key], tensor) for key, tensor in load_file(source).items())
    assert summary.ratio > 1.05
