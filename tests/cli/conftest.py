"""A small checkpoint and its compressed file, and a way to run a command in this process."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from waterfill.cli import main


@dataclass(frozen=True)
class Ran:
    """What a command did: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys) -> Callable[..., Ran]:
    """`run("info", path)` runs a command in this process."""

    def command(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return command


def tensors() -> dict[str, torch.Tensor]:
    """A convolution, a tied linear layer, a vector, a counter: what a checkpoint is made of, in small."""
    random = torch.Generator().manual_seed(7)
    linear = torch.randn(24, 40, generator=random)
    return {
        "conv.weight": torch.randn(16, 8, 3, 3, generator=random) * 0.1,
        "head.weight": linear,
        "head.twin": linear.clone(),
        "head.bias": torch.randn(24, generator=random).bfloat16(),
        "norm.num_batches_tracked": torch.tensor(41),
    }


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A .safetensors file."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_file(tensors(), path)
    return path


@pytest.fixture(scope="session")
def compressed(checkpoint, tmp_path_factory) -> Path:
    """The checkpoint as a .wf file of three bits per weight."""
    path = tmp_path_factory.mktemp("compressed") / "model.wf"
    assert main(["compress", str(checkpoint), "--bits", "3", "-o", str(path), "--quiet"]) == 0
    return path
