"""`waterfill export` from a shell."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.exported import small, viewer

import waterfill
from waterfill.cli import main

NETS = "from tests.support.exported import viewer\nbuild = lambda: viewer()[0]\ninputs = lambda: [viewer()[1]]\n"


@pytest.fixture
def file(tmp_path, monkeypatch):
    small(viewer()[0], "Quantize(bits=4, group=16)").save(tmp_path / "net.wf")
    (tmp_path / "exported_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return "net.wf"


def test_weights_alone_and_what_is_refused(file, tmp_path, capsys):
    assert main(["export", file, "--to", "safetensors", "-o", "out", "--dtype", "float16"]) == 0
    printed = capsys.readouterr().out
    assert (
        "conv2.weight" in printed and "dense, float16" in printed and len(load_file(tmp_path / "out/model.safetensors"))
    )
    assert main(["export", file, "--to", "safetensors", "-o", "out"]) == 3
    assert "--force" in capsys.readouterr().err
    assert main(["export", file, "--to", "safetensors", "-o", "more", "--network", "exported_nets:build"]) == 2
    assert "leave --network" in capsys.readouterr().err
    assert main(["export", file, "--to", "onnx", "-o", "net.onnx"]) == 2
    assert "give --network and --data" in capsys.readouterr().err
    assert main(["export", "nothing.wf", "--to", "safetensors", "-o", "more"]) == 2


def test_a_network_and_its_inputs(file, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason='needs onnx, onnxruntime: pip install "waterfill[export]"')
    words = ["export", file, "--to", "onnx", "-o", "net.onnx", "--network", "exported_nets:build"]
    assert main([*words, "--data", "exported_nets:inputs", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == (tmp_path / "net.onnx").stat().st_size and said["difference"] < 1e-5
    assert {row["name"] for row in said["tensors"]} >= {"conv1.weight", "conv2.weight", "head.weight", "head.bias"}
    assert main([*words, "--data", "exported_nets:inputs", "--force"]) == 0
    assert "differ from those in PyTorch" in capsys.readouterr().out


def test_a_budget_of_the_file_with_inputs_in_8_bits(file, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason='needs onnx, onnxruntime: pip install "waterfill[export]"')
    save_file(viewer()[0].state_dict(), "whole.safetensors")
    data = ["--network", "exported_nets:build", "--data", "exported_nets:inputs"]
    made = ["compress", "whole.safetensors", "--format", "onnx", "--size", "8kB", "-o", "small.wf", "--quiet", *data]
    assert main(made) == 0
    assert "bytes in a file of onnx" in capsys.readouterr().out
    out = ["export", "small.wf", "--to", "onnx", "-o", "small.onnx", *data]
    assert main(out) == 0 and (tmp_path / "small.onnx").stat().st_size <= 8000
    capsys.readouterr()
    assert main([*out, "--activations", "8", "--force"]) == 0
    assert "8-bit products" in capsys.readouterr().out


def test_tensors_alike_share_a_row_of_a_long_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tensors = {f"block1.{j}.weight": torch.randn(4, 4) for j in range(60)}
    waterfill.compress(tensors, lossless=True).save("net.wf")
    assert main(["export", "net.wf", "--to", "safetensors", "-o", "out"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split() == [
        "block1.*.weight",
        "60",
        "3.84",
        "kB",
        "dense,",
        "float32",
    ]
    assert main(["export", "net.wf", "--to", "safetensors", "-o", "out", "--force", "--all"]) == 0
    assert "block1.7.weight" in capsys.readouterr().out
