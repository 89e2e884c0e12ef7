"""Norms after the last block, corrected for what the blocks have lost."""

from collections.abc import Callable

import torch
from tests.support.stacks import WIDTH, Block, stack
from torch import Tensor, nn

from waterfill.compression.blocks.norms import Ending, corrected


def ending(model: nn.Module, states: list[Tensor]) -> Ending:
    def run(j: int, reached: Callable[[], None]) -> Tensor:
        model.norm(states[j] + 1)  # a norm that runs before the last block has run
        reached()
        return model.head(model.norm(states[j]))

    return Ending(model, run)


def random(seed: int) -> Tensor:
    return torch.randn(2, 60, WIDTH, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_channels_that_are_noise_shrink_and_others_stay() -> None:
    model = stack(Block, Block)
    states = [random(j) for j in range(4)]
    noisy = [state.clone() for state in states]
    for j, state in enumerate(noisy):
        state[..., :4] = random(10 + j)[..., :4]  # nothing is left of what was there
    found = corrected(ending(model, states), ending(model, noisy), 4)
    assert set(found) == {"norm.weight"}
    factors = found["norm.weight"] / model.norm.weight
    assert float(factors[:4].abs().max()) < 0.4 and float((factors[4:] - 1).abs().max()) < 0.1


@torch.no_grad()
def test_without_a_difference_nothing_changes() -> None:
    model = stack(Block, Block)
    states = [random(j) for j in range(2)]
    found = corrected(ending(model, states), ending(model, states), 2)
    assert torch.equal(found["norm.weight"], model.norm.weight)


class OneMoreNorm(nn.Module):
    """Multiplies by one more than its weight, as the norms of Gemma do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-0.5, 0.5, WIDTH), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, (WIDTH,)) * (1 + self.weight)


@torch.no_grad()
def test_norms_that_multiply_by_one_more_than_their_weight_are_scaled_as_such() -> None:
    model = stack(Block, Block)
    model.norm = OneMoreNorm()
    states = [random(j) for j in range(4)]
    noisy = [torch.cat([random(10 + j)[..., :4], state[..., 4:]], -1) for j, state in enumerate(states)]
    found = corrected(ending(model, states), ending(model, noisy), 4)
    factors = (1 + found["norm.weight"]) / (1 + model.norm.weight)
    assert float(factors[:4].abs().max()) < 0.4 and float((factors[4:] - 1).abs().max()) < 0.1
