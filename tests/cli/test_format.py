"""`--format`: budgets of the file that a network is exported to."""

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def matrices(tmp_path):
    save_file({"a.weight": torch.randn(64, 96), "b.weight": torch.randn(96, 64)}, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_files_for_a_format_say_what_they_take_there(run, matrices, tmp_path) -> None:
    out = tmp_path / "small.wf"
    made = run("compress", matrices, "--format", "gguf", "--size", "9kB", "-o", out)
    assert made.code == 0, made.err
    line = next(line for line in made.out.splitlines() if "in a file of gguf" in line)
    assert out.stat().st_size < int(line.split()[1]) <= 9000
    said = run("info", out)
    assert line in said.out and "recipe InFormat(format='gguf')" in said.out


def test_a_format_without_meaning_is_refused(run, matrices) -> None:
    assert run("compress", matrices, "--format", "tflite").code == 2
    assert run("compress", matrices, "--format", "gguf", "--runs", "packed").code == 2
    ran = run("compress", matrices, "--format", "gguf", "--recipe", "LowRank()")
    assert ran.code == 2 and "no bits to choose of those that gguf has" in ran.err
