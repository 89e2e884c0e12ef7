"""A network, and its file."""

from pathlib import Path

import pytest
import torch
from tests.support.packable import Net
from torch import nn

import waterfill


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def packed_file(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "net.wf"
    waterfill.compress(net, spec="Codebook(values='ternary') + Prune(keep=0.02)", price=1e-6).save(path)
    return path
