"""A network whose blocks are there one at a time: what lies outside of them, and each block when it is asked for."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from waterfill.assignment import Assignment
from waterfill.calibration.calibrate import weights_of
from waterfill.compression.task import Task
from waterfill.errors import BadInput
from waterfill.network.blocks.find import Blocks
from waterfill.network.layout import Layout
from waterfill.network.running.forward import copy_of


@dataclass(frozen=True, eq=False)
class Stretch:
    """A part of the network that is measured at once. module: a block, or the network without its blocks. prefix: what
    stands before the names of its tensors. weights, layouts: by their names in the module."""

    module: nn.Module
    prefix: str
    weights: dict[str, Tensor]
    layouts: dict[str, Layout]

    @classmethod
    def of(cls, module: nn.Module, prefix: str = "") -> "Stretch":
        """Of a module with its weights. Raises BadInput for NaN."""
        return cls(module, prefix, *weights_of(module))


@dataclass(frozen=True, eq=False)
class Source:
    """A network and its tensors.

    model: without the tensors of its blocks. task: all tensors. original: (number) -> a block with its weights, which
    nobody may change. tied: names of the model that the task has under another.
    """

    model: nn.Module
    blocks: Blocks
    task: Task
    original: Callable[[int], nn.Module]
    tied: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, owner in (*self.task.aliases.items(), *self.tied.items()):
            if self.blocks.owner_of(name) != self.blocks.owner_of(owner):
                raise BadInput(f"{name!r} is tied to {owner!r}, which lies in another block: blocks share no weights")

    @cached_property
    def positions(self) -> dict[str, int]:
        """The number of each tensor in the task, by every name that it has."""
        own = {weight.name: i for i, weight in enumerate(self.task.weights)}
        return own | {name: own[owner] for name, owner in (*self.task.aliases.items(), *self.tied.items())}

    @cached_property
    def members(self) -> dict[int | None, list[int]]:
        """The tensors of each block, and, under None, those outside."""
        found: dict[int | None, list[int]] = {i: [] for i in (None, *range(len(self.blocks)))}
        for i, weight in enumerate(self.task.weights):
            found[self.blocks.owner_of(weight.name)].append(i)
        return found

    def stretch(self, number: int | None) -> Stretch:
        """A block, or what lies outside, with its weights."""
        if number is None:
            return Stretch.of(self.model)
        return Stretch.of(self.original(number), f"{self.blocks.names[number]}.")


def source_in_memory(model: nn.Module, blocks: Blocks, recipe: Assignment) -> Source:
    """Of a network in memory, which is not changed and whose weights are not copied. Raises BadInput."""
    task = Task.of(model, recipe, None)
    shared = copy_of(model, sharing=True).eval().requires_grad_(False)
    modules = [shared.get_submodule(name) for name in blocks.names]
    empty_blocks(shared, blocks)
    return Source(shared, blocks, task, modules.__getitem__)


def empty_blocks(model: nn.Module, blocks: Blocks) -> None:
    """Put blocks without tensors in the place of a model's own: they keep whatever else the model reads of them, but
    for their hooks, which run with the block itself."""
    for name in blocks.names:
        block, (prefix, _, key) = model.get_submodule(name), name.rpartition(".")
        held = (*block.parameters(), *block.buffers())
        empty = copy.deepcopy(block, {id(tensor): None for tensor in held})
        for hooks in (empty._forward_pre_hooks, empty._forward_hooks):
            hooks.clear()
        model.get_submodule(prefix)._modules[key] = empty


def installed(module: nn.Module, name: str, value: Tensor) -> None:
    """Give a tensor of a module other values, in its own type and on its own device; no other module is changed."""
    prefix, _, key = name.rpartition(".")
    owner = module.get_submodule(prefix)
    held = owner._parameters.get(key)
    if held is not None:
        held.data = value.to(held.device, held.dtype)
    else:
        before = owner._buffers[key]
        assert before is not None
        owner._buffers[key] = value.to(before.device, before.dtype)


def working_copy(block: nn.Module) -> nn.Module:
    """A block whose tensors can be replaced one by one; until they are, they lie in the memory of the original's."""
    memo: dict[int, object] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in block.parameters()}
    with torch.inference_mode(False):
        return copy.deepcopy(block, memo)
