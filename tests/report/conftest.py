"""A small trained-looking network, its inputs, its checkpoint and a file of it."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.support.small_networks import Normed, lively
from torch import Tensor, nn

import waterfill
from waterfill.compression.post_training import fold_notes
from waterfill.network.batch_norm import fold_batch_norm


@dataclass(frozen=True)
class Place:
    """model: the network. inputs: [48, 3, 8, 8]. labels: what it says of them. checkpoint, plain, folded: of it, the
    last with norms folded."""

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    checkpoint: Path
    plain: Path
    folded: Path


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Place:
    folder = tmp_path_factory.mktemp("report")
    inputs = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model = lively(Normed, inputs)
    with torch.no_grad():
        labels = model(inputs).argmax(1)
    save_file(model.state_dict(), folder / "net.safetensors")
    waterfill.compress(model, price=1e-3).save(folder / "plain.wf")
    work = fold_batch_norm(model, inputs)
    made = waterfill.compress(work, spec="Quantize(bits=6, group=32)")
    replace(made, notes=made.notes | {"folded": fold_notes(model, work)}).save(folder / "folded.wf")
    return Place(model, inputs, labels, folder / "net.safetensors", folder / "plain.wf", folder / "folded.wf")
