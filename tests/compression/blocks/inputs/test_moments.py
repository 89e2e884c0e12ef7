"""Costs and targets from the inputs of a block's weights in both networks."""

from functools import partial

import torch
from torch import Tensor

from waterfill.compression.allocation.weight import Weight
from waterfill.compression.blocks.inputs.moments import GroupMoments, StackMoments
from waterfill.compression.blocks.measured import Measured
from waterfill.importance import Importance
from waterfill.network.layout import layout_of
from waterfill.parts import Quantize

ROWS, COLS, EXPERTS = 6, 8, 3


def weight_of(value: Tensor) -> Weight:
    return Weight("w", layout_of(tuple(value.shape), value.dtype), Quantize(), partial(torch.clone, value))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_target_makes_up_for_a_gap_in_the_hidden_state_that_its_inputs_show() -> None:
    value, lacking = random(ROWS, COLS), random(ROWS, COLS, seed=1)
    moments = GroupMoments()
    for j in range(4):
        x = random(200, COLS, seed=2 + j)
        moments.add((x, x), j % 2, x @ lacking.mT)
    target = moments.aimed(weight_of(value)).tensor()
    assert torch.allclose(target, value + lacking, atol=0.1)


def test_a_gap_that_inputs_do_not_show_changes_little() -> None:
    value, moments = random(ROWS, COLS), GroupMoments()
    for j in range(4):
        x = random(100, COLS, seed=2 + j)
        moments.add((x, x), j % 2, random(100, ROWS, seed=20 + j))
    assert float((moments.aimed(weight_of(value)).tensor() - value).norm()) < 0.1 * float(value.norm())


def test_experts_have_costs_of_their_own_inputs_and_with_few_of_those_of_all() -> None:
    weight = weight_of(random(EXPERTS, ROWS, 40))
    moments = StackMoments()
    wide = torch.linspace(0.1, 3.0, 40)
    for j in range(4):
        moments.add(0, random(2000, 40, seed=j) * wide, j % 2)
        moments.add(1, random(3, 40, seed=10 + j) * wide.flip(0), j % 2)
    energy = torch.linspace(1.0, 2.0, ROWS)
    made = moments.costed(weight, Measured({}, importance=Importance(energy, gram=torch.eye(40))))
    often, seldom, never = (own for _, own in made.matrices(1.0))
    diagonals = [own.gram.diagonal() / own.gram.diagonal().mean() for own in (often, seldom, never)]
    assert torch.allclose(diagonals[0], (wide**2) / (wide**2).mean(), atol=0.3)
    assert torch.allclose(diagonals[2], diagonals[0], atol=0.05)  # it got none: as the mean of the others
    assert 0.02 < float((diagonals[1] - diagonals[0]).norm() / diagonals[0].norm()) < 0.5  # between the two
    costs = [float((own.rows.double() * own.gram.diagonal().sum()).sum()) for own in (often, seldom, never)]
    assert costs[0] > 10 * costs[1] > 10 * costs[2] > 0
    assert abs(sum(costs) / (EXPERTS * 40 * float(energy.sum())) - 1) < 1e-2  # the stack costs what it did
