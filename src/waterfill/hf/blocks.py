"""The model of a folder with no more than one of its blocks in memory: its structure, and weights read by name."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.compression.blocks.source import Source, empty_blocks
from waterfill.compression.task import Task
from waterfill.errors import BadInput
from waterfill.hf.original import tied_names
from waterfill.network.blocks.find import Blocks, blocks_of
from waterfill.network.checkpoint import Checkpoint

_SHOWN = 3


def source_on_disk(model: nn.Module, checkpoint: Checkpoint, task: Task, prefix: str | None) -> Source:
    """The model of a checkpoint, block by block. model: its structure. prefix: the name of the list of blocks.

    Raises BadInput where a parameter is not on disk by its name, and for blocks that cannot be found.
    """
    blocks = blocks_of(model, prefix)
    tied = tied_names(model)
    load = _loader(checkpoint, tied)
    missing = [name for name, value in model.state_dict().items() if value.is_meta and not load(name, False)]
    if missing:
        raise BadInput(
            f"the checkpoint does not hold {', '.join(missing[:_SHOWN])} by the names of the model; its blocks cannot "
            "be read one by one"
        )
    for name in [name for name, _ in model.named_parameters(remove_duplicate=False)]:
        if blocks.owner_of(name) is None and model.get_parameter(name).is_meta:
            _set(model, name, load(name, True))
            _tie(model, next((group for group in tied if name in group), []), name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    empty = [model.get_submodule(name) for name in blocks.names]
    empty_blocks(model, blocks)
    owners = {name: owner for group in tied for name, owner in _owners(group, task).items()}
    return Source(model, blocks, task, _Reader(blocks, empty, load, device), owners)


class _Reader:
    """(number) -> a block with its weights, float32; the last one is kept."""

    def __init__(
        self, blocks: Blocks, empty: Sequence[nn.Module], load: Callable[[str, bool], Any], device: torch.device
    ) -> None:
        self._blocks, self._empty, self._load, self._device = blocks, empty, load, device
        self._last: tuple[int, nn.Module] | None = None

    def __call__(self, number: int) -> nn.Module:
        if self._last is None or self._last[0] != number:
            self._last = None  # its memory, before that of another
            block = copy.deepcopy(self._empty[number])
            for name, _ in list(block.named_parameters()):
                _set(block, name, self._load(f"{self._blocks.names[number]}.{name}", True))
            self._last = number, block.eval().to(self._device)
        return self._last[1]


def _loader(checkpoint: Checkpoint, tied: list[list[str]]) -> Callable[[str, bool], Any]:
    """A function that reads a tensor by its name in the model, or says whether there is one."""
    other = {name: group for group in tied for name in group}

    def load(name: str, whole: bool) -> Any:
        for known in (name, *other.get(name, ())):
            stored = checkpoint.tensors.get(checkpoint.aliases.get(known, known))
            if stored is not None:
                return _real(stored.load()) if whole else True
        return None

    return load


def _real(value: Tensor) -> Tensor:
    """A tensor in memory of its own, float32 where it is of real numbers."""
    return value.to(torch.float32, copy=True) if value.is_floating_point() else value.clone()


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    prefix, _, key = name.rpartition(".")
    module.get_submodule(prefix)._parameters[key] = nn.Parameter(value, requires_grad=False)


def _tie(model: nn.Module, group: list[str], known: str) -> None:
    """Let the names of a group be one parameter, that of the name that is known."""
    for name in group:
        prefix, _, key = name.rpartition(".")
        model.get_submodule(prefix)._parameters[key] = model.get_parameter(known)


def _owners(group: list[str], task: Task) -> dict[str, str]:
    """By the names of a group, the one under which it is on disk."""
    known = {weight.name for weight in task.weights}
    owner = next(name for name in (*group, *(task.aliases.get(name, "") for name in group)) if name in known)
    return {name: owner for name in group if name not in known}
