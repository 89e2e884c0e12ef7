"""Networks that others learn from, and networks that have learned from them."""

import copy
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lib.calibration_data import calibration_batches, model_of
from lib.common import data_folder
from lib.networks import networks
from lib.training_data import training_batches
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from waterfill.channels import fold_norms
from waterfill.learn import Distillation, distill

RATES = {"ResNet-20": 0.05, "ResNet-56": 0.03}
"""Of SGD at first, of networks that are distilled."""
_AND, _SECONDS = " + ", "seconds"


class Together(nn.Module):
    """Networks of one task: the mean of their logits."""

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([model(x) for model in self.models]).mean(0)


def large(names: str, device: torch.device) -> nn.Module:
    """A network that others imitate, or several whose names " + " joins, their norms folded."""
    folder, models = data_folder(), []
    for name in names.split(_AND):
        model = model_of(name, folder, networks()[name].state(folder))
        models.append(fold_norms(model, *calibration_batches(name, folder, 2)).to(device))
    return models[0] if len(models) == 1 else Together(models).eval()


def student(
    network: str, teacher: str, epochs: int, device: torch.device, kept: Path | None = None
) -> tuple[nn.Module, float]:
    """The uncompressed network after it has learned from a teacher without labels, and the seconds that this took.

    kept: a folder where such networks are kept and found again.
    """
    path = None if kept is None else kept / f"{network}, {teacher}, {epochs}.safetensors"
    if path is None or not path.is_file():
        model, seconds = _distilled(network, teacher, epochs, device)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            state = {name: value.contiguous() for name, value in model.cpu().state_dict().items()}
            save_file(state, path, {_SECONDS: f"{seconds}"})
        return copy.deepcopy(model).to(device), seconds
    folder = data_folder()
    model = model_of(network, folder, networks()[network].state(folder))
    model.load_state_dict(load_file(path))
    with safe_open(path, "pt") as file:
        return model.eval().to(device), float((file.metadata() or {}).get(_SECONDS, "nan"))


@cache
def _distilled(network: str, teacher: str, epochs: int, device: torch.device) -> tuple[nn.Module, float]:
    folder = data_folder()
    model = model_of(network, folder, networks()[network].state(folder)).to(device)
    batches, began = training_batches(network, folder, device), time.process_time()
    teach(model, large(teacher, device), batches, epochs, RATES[network])
    return model, time.process_time() - began


def teach(student: nn.Module, teacher: nn.Module, batches: Any, epochs: float, rate: float) -> None:
    """Let a network learn to say what another one says of the images in batches (images, ...), on its device, in place:
    by SGD in bfloat16, without labels."""
    device = next(student.parameters()).device

    def forward(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            outputs: Tensor = model(batch[0].to(device, memory_format=torch.channels_last, non_blocking=True))
        return outputs

    def optimizer(parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=5e-4, nesterov=True)

    distill(student, teacher, batches, forward=forward, how=Distillation(epochs, optimizer=optimizer))
