"""Runs a network from the middle: from the outputs, kept for every batch, of the last block that no longer changes.

Blocks are the members of lists and sequences of modules. Whatever runs before the last block that is finished then
returns values that nobody may look at: whether that is so is tested by running once with other such values.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.network.running.batches import each_tensor, tensors_in

_OTHERWISE = 3.0  # added to values that must not matter


@dataclass(frozen=True)
class Ran:
    """A block that ran once: its name, its place among the beginnings and ends of all blocks, and how many of what the
    caller counts there were by its end."""

    name: str
    began: int
    ended: int
    count: int


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for prefix, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            for key, child in module.named_children():
                if not isinstance(child, torch.jit.ScriptModule):
                    yield f"{prefix}.{key}" if prefix else key, child


@contextmanager
def watched(model: nn.Module, counted: Callable[[], int]) -> Iterator[list[Ran]]:
    """A block of code with one run of the model; the list then holds the blocks that ran once and returned tensors."""
    ran: list[Ran] = []
    events: dict[str, list[tuple[int, int]]] = {}
    odd: set[str] = set()
    clock = iter(range(1 << 62))
    with ExitStack() as stack:
        for name, module in _blocks(model):

            def before(_: nn.Module, __: Any, name: str = name) -> None:
                events.setdefault(name, []).append((next(clock), 0))

            def after(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                events[name].append((next(clock), counted()))
                if not _is_plain(output):
                    odd.add(name)

            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        yield ran
    whole = {name: own for name, own in events.items() if len(own) == 2 and name not in odd}
    ran += [Ran(name, begin, end, count) for name, ((begin, _), (end, count)) in whole.items()]
    ran.sort(key=lambda one: one.ended)


def _is_plain(output: Any) -> bool:
    """Whether an output is a tensor, or a tuple or list of tensors."""
    values = output if type(output) in (tuple, list) else [output]
    return bool(values) and all(isinstance(value, Tensor) for value in values)


@dataclass
class Resumed:
    """A network that is run on the same batches time and again, while more and more of its blocks no longer change.

    ran: its blocks, in the order of their ends. memory: bytes that the outputs of one block may take, of all batches;
    where they take more, the network is run from its inputs.
    """

    model: nn.Module
    ran: Sequence[Ran]
    memory: int
    _modules: Mapping[str, nn.Module] = field(default_factory=dict)
    _from: Ran | None = None
    _kept: dict[int, Any] = field(default_factory=dict)
    _next: Ran | None = None
    _coming: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._modules = dict(self.model.named_modules())

    def aim(self, count: int) -> None:
        """Keep, in the runs that follow, the outputs of the last block that has ended when so many are counted."""
        self._coming.clear()
        ended = [one for one in self.ran if 0 < one.count <= count]
        self._next = ended[-1] if ended and ended[-1] != self._from else None

    def arrive(self, batches: int) -> None:
        """Run from those outputs from now on, if there is one for each of the batches."""
        if self._next is not None and len(self._coming) == batches:
            self._from, self._kept = self._next, dict(self._coming)
        self._next = None
        self._coming.clear()

    def stop(self) -> None:
        """Run from the inputs from now on, always."""
        self.ran, self._from, self._next = (), None, None
        self._kept.clear()
        self._coming.clear()

    @property
    def resumes(self) -> bool:
        """Whether runs begin at a block."""
        return self._from is not None

    @contextmanager
    def running(self, batch: int, *, otherwise: bool = False) -> Iterator[None]:
        """A block of code that runs the model on a batch, given by its number.

        otherwise: with other values where they must not matter.
        """
        with ExitStack() as stack:
            if self._from is not None and batch in self._kept:
                own = self._kept[batch]
                other = each_tensor(own, _changed) if otherwise else own
                stack.enter_context(_returning(self._modules[self._from.name], own))
                for one in self.ran:
                    if one.ended < self._from.began:
                        stack.enter_context(_returning(self._modules[one.name], other))
            if self._next is not None and not otherwise:
                module = self._modules[self._next.name]
                stack.callback(module.register_forward_hook(lambda _, __, output: self._keep(batch, output)).remove)
            yield

    def _keep(self, batch: int, output: Any) -> None:
        self._coming[batch] = each_tensor(output, _copied)
        if sum(tensor.nbytes for tensor in tensors_in(list(self._coming.values()))) > self.memory:
            self._coming.clear()
            self._next = None


def _changed(value: Tensor) -> Tensor:
    return value + _OTHERWISE if value.is_floating_point() else value


def _copied(value: Tensor) -> Tensor:
    return value.detach().clone()


@contextmanager
def _returning(module: nn.Module, output: Any) -> Iterator[None]:
    """A block of code in which a module returns a copy of an output, without running."""
    before = vars(module).get("forward")
    module.forward = lambda *_, **__: each_tensor(output, _copied)
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
