"""Weights whose outputs are added to the hidden state that passes by, and what that state lacks where they are added.

Such a weight can make up for the errors of all blocks before it, not only for those of its own inputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.compression.blocks.source import Stretch, installed, working_copy
from waterfill.compression.steps.corrections import is_norm
from waterfill.compression.steps.recorded import Recorded
from waterfill.network.layout import MATRIX

_SHARE = 0.1  # of a weight's entries, that it is moved by to see what follows
_CLOSE = 1e-2  # of the change that is expected: the rounding of large hidden states shows


class Sums:
    """A run of a block that keeps the hidden states to which weights may add: the inputs of its norms, and the result.

    seen: they, in order, of the last run; without the result where it was cut short.
    """

    def __init__(self, block: nn.Module, run: Callable[[], Tensor]) -> None:
        self.seen: list[Tensor] = []
        self._block, self._run = block, run

    def __call__(self) -> None:
        self.seen = []
        with _before_norms(self._block, self.seen):
            self.seen.append(self._run().detach())


@contextmanager
def _before_norms(block: nn.Module, seen: list[Tensor]) -> Iterator[None]:
    def see(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            seen.append(inputs[0].detach().clone())  # what follows may write into it

    with ExitStack() as stack:
        for module in block.modules():
            if is_norm(module):
                stack.callback(module.register_forward_pre_hook(see).remove)
        yield


def points_of(
    stretch: Stretch, found: tuple[Sequence[Recorded], Mapping[str, int]], run: Callable[[nn.Module], Tensor]
) -> dict[str, int]:
    """By the name of a weight that is added to the hidden state, the number of the first of `Sums` that has it.

    found: the inputs of a batch, and how often each weight is used. run: (block) -> its hidden state after that batch.
    Each weight that may be one is moved at random: it is one if that state changes by exactly its change.
    """
    recorded, uses = found
    block = working_copy(stretch.module)
    before = Sums(block, lambda: run(block))
    before()
    random = torch.Generator("cpu").manual_seed(0)
    points: dict[str, int] = {}
    for one in recorded:
        name, hidden = one.view.name, before.seen[-1]
        layout, value = stretch.layouts[name], stretch.weights[name]
        alone = uses[name] == 1 and one.geometry is None and layout.role == MATRIX and layout.count == 1
        if not alone or layout.matrix[0] != hidden.shape[-1] or one.x.shape[:-1].numel() != hidden.shape[:-1].numel():
            continue
        size = _SHARE * float(value.detach().float().square().mean().sqrt())
        step = size * torch.randn(value.shape, generator=random, dtype=torch.float32, device="cpu").to(value)
        installed(block, name, value.detach() + step)
        after = Sums(block, lambda: run(block))
        after()
        installed(block, name, value.detach())
        matrix = layout.split(step.cpu())[0].to(one.x)
        change = (one.x @ matrix.mT).reshape(hidden.shape)
        at = next((i for i, pair in enumerate(zip(before.seen, after.seen, strict=True)) if _adds(*pair, change)), None)
        points |= {} if at is None else {name: at}
    return points


def gap_between(original: Tensor | None, compressed: Tensor | None) -> Tensor | None:
    """What a hidden state of the compressed network lacks; None where it is not known."""
    if original is None or compressed is None or original.shape != compressed.shape:
        return None
    return original - compressed


def _adds(before: Tensor, after: Tensor, change: Tensor) -> bool:
    """Whether one state is another and a change."""
    if before.shape != change.shape or after.shape != change.shape:
        return False
    return float((after - before - change).norm()) <= _CLOSE * float(change.norm())
