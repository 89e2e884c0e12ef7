"""Runs that begin at the last block that no longer changes."""

import pytest
import torch
from torch import Tensor, nn

from waterfill.network.running.resume import Resumed, watched


class Stack(nn.Module):
    """Blocks in a list; `skip` adds the inputs of the first to the outputs of the last."""

    def __init__(self, skip: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4))
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        x = first = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x + first if self.skip else x)


class Twice(Stack):
    """Every block runs twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x + sum(block(torch.ones(6)).sum() for block in self.blocks)


def resumed(model: nn.Module, x: Tensor, count: int, memory: int = 1 << 20) -> Resumed:
    """The model, to be run from the last block of those that end before so many layers have run."""
    ended: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_, name=name: ended.append(name))
    with watched(model, lambda: len(ended)) as ran:
        model(x)
    run = Resumed(model, ran, memory)
    run.aim(count)
    with run.running(0):
        model(x)
    run.arrive(1)
    return run


@torch.no_grad()
def test_it_begins_where_it_was_left() -> None:
    model, x = Stack(), torch.randn(5, 6)
    expected = model(x)
    run = resumed(model, x, count=4)  # the stem and three blocks
    assert run.resumes
    calls = []
    for i, block in enumerate(model.blocks):
        block[0].register_forward_hook(lambda *_, i=i: calls.append(i))
    with run.running(0):
        assert torch.equal(model(x), expected)
    assert calls == [3]
    with run.running(0, otherwise=True):
        assert torch.equal(model(x), expected)
    assert torch.equal(model(x), expected) and calls == [3, 3, 0, 1, 2, 3]  # the model is as it was


@torch.no_grad()
def test_values_that_do_matter_show() -> None:
    """A run with other values in place of blocks that do not run is not the same where something looks at them."""

    class Peeks(Stack):
        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks[0](self.stem(x))
            return self.head(self.blocks[2](self.blocks[1](x)) + x)

    model, x = Peeks(), torch.randn(5, 6)
    run = resumed(model, x, count=4)
    with run.running(0):
        found = model(x)
    with run.running(0, otherwise=True):
        assert not torch.equal(model(x), found)
    run.stop()
    with run.running(0):
        assert not torch.equal(model(x), found)  # now it is right


@torch.no_grad()
def test_a_skip_from_before_the_blocks_is_no_obstacle() -> None:
    model, x = Stack(skip=True), torch.randn(5, 6)
    expected, run = model(x), resumed(model, x, count=5)
    with run.running(0, otherwise=True):
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("count", [0, 1])
def test_before_the_first_block_has_ended_it_begins_at_the_inputs(count: int) -> None:
    assert not resumed(Stack(), torch.randn(5, 6), count).resumes


def test_blocks_that_run_twice_are_left_alone() -> None:
    assert not resumed(Twice(), torch.randn(5, 6), count=5).resumes


def test_without_memory_it_begins_at_the_inputs() -> None:
    assert not resumed(Stack(), torch.randn(5, 6), count=4, memory=100).resumes
