"""Snapshots of a network in training: safetensors, written atomically; no pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from waterfill.errors import CorruptFile
from waterfill.storage.atomic import write_whole

_MODEL, _LEARNER, _OPTIMIZER = "model.", "learner.", "optimizer."


def write(path: Path, model: nn.Module, learner: Mapping[str, Tensor], optimizer: Optimizer, about: Any) -> None:
    """Write all that goes on training needs. about: what is no tensor, as JSON."""
    numbers: dict[str, float] = {}
    tensors = {f"{_MODEL}{name}": value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    tensors |= {f"{_LEARNER}{name}": value for name, value in learner.items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}{index}.{key}"] = value
            elif value is not None:
                numbers[f"{index}.{key}"] = value
    tensors["random"] = torch.get_rng_state()
    copies = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    write_whole(path, save(copies, {"about": json.dumps([about, numbers])}))


def read(path: Path) -> "tuple[dict[str, Tensor], Any, dict[str, float]] | None":
    """Tensors, `about` and the optimizer's numbers of a snapshot; None where there is none. Raises CorruptFile."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about, numbers = json.loads((file.metadata() or {})["about"])
            return {name: file.get_tensor(name) for name in file.keys()}, about, numbers  # noqa: SIM118 - no mapping
    except (SafetensorError, KeyError, ValueError) as error:
        raise CorruptFile(f"{path} is no snapshot of a training ({error}); delete it to begin anew") from error


@torch.no_grad()
def restore(
    found: "tuple[dict[str, Tensor], Any, dict[str, float]]", model: nn.Module, optimizer: Optimizer
) -> dict[str, Tensor]:
    """Give a model and an optimizer the state of a snapshot, and the generator of random numbers too.

    Returns the state of the learner.
    """
    tensors, _, numbers = found
    own = model.state_dict()
    for name, value in own.items():
        if isinstance(value, Tensor):
            value.copy_(tensors[f"{_MODEL}{name}"])
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith(_OPTIMIZER):
            index, _, key = name.removeprefix(_OPTIMIZER).partition(".")
            state.setdefault(int(index), {})[key] = value
    for name, number in numbers.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = number
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    torch.set_rng_state(tensors["random"])
    return {name.removeprefix(_LEARNER): value for name, value in tensors.items() if name.startswith(_LEARNER)}
