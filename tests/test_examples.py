"""Every example runs, at toy size, and is short enough to be read."""

import importlib.util
import re
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from tests.support.places import EXAMPLES

TOY = {
    "your_model": {"width": 32},
    "recipes": {"rows": 32, "cols": 48},
    "new_kind": {"rows": 32, "cols": 48},
    "learning": {"epochs": "4"},
    "distillation": {"epochs": "2"},
    "channels": {"epochs": "1", "images": 256},
}


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_test_for_every_example():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*TOY, "checkpoint", "with_data", "language_model"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_has_fewer_than_100_lines_and_says_how_to_run_it(path):
    text = path.read_text("utf-8")
    assert len(text.splitlines()) < 100
    assert f"python examples/{path.name}" in text


@pytest.mark.parametrize("name", TOY)
def test_an_example_runs_and_prints(name, capsys):
    example(name).main(**TOY[name])
    assert capsys.readouterr().out


def test_data_move_the_outputs_less(capsys):
    example("with_data").main(width=32, images=400)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for line in lines:
        plain, informed = map(float, re.findall(r"([\d.]+) %", line))
        assert informed < plain


def test_the_checkpoint_example_writes_two_files(tmp_path, capsys):
    source = tmp_path / "model.safetensors"
    save_file({"layer.weight": torch.randn(64, 64), "layer.bias": torch.randn(64)}, source)
    example("checkpoint").main(str(source))
    assert "lossless" in capsys.readouterr().out
    sizes = [(tmp_path / name).stat().st_size for name in ("model.wf", "model.exact.wf", "model.safetensors")]
    assert sizes == sorted(sizes)


def test_the_language_model_is_small_and_says_the_same(tmp_path, capsys):
    pytest.importorskip("transformers", reason="needs transformers, the extra [hf]: `make test-hf`")
    from tests.support.hf_models import language_model, write_text

    language_model(tmp_path / "net")
    text = write_text(tmp_path / "text.txt", 600)
    example("language_model").main(str(tmp_path / "net"), str(text), "3.5", "16x24")
    dense, packed = re.findall(r"perplexity ([\d.]+)", capsys.readouterr().out)
    assert float(packed) == pytest.approx(float(dense), rel=1e-3)
