"""Where weights are added to the hidden state, and targets that make up for what it lacks there."""

from functools import partial

import pytest
import torch
from tests.support.stacks import WIDTH, Block
from torch import Tensor, nn

from waterfill.compression.blocks.inputs.recording import recorded
from waterfill.compression.blocks.inputs.sums import Sums, points_of
from waterfill.compression.blocks.source import Stretch


class Parallel(Block):
    """Attention and a gated layer beside each other, as in GPT-J."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.norm1(x)
        mixed = nn.functional.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y))
        return x + self.o(mixed) + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Squashed(Block):
    """Nothing is added: the last thing that it does is no sum."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.tanh(super().forward(x, mask))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Block, {"o.weight": 1, "down.weight": 2}),
        (Parallel, {"o.weight": 1, "down.weight": 1}),
        (Squashed, {"o.weight": 1}),
    ],
)
def test_weights_that_are_added_are_found_where_they_are(kind: type[Block], expected: dict[str, int]) -> None:
    # inputs of norms come first, in order, then the result; the second norm of the parallel block does not run
    torch.manual_seed(0)
    stretch = Stretch.of(kind().eval().requires_grad_(False))
    hidden = torch.randn(2, 12, WIDTH)
    run = lambda block: block(hidden)  # noqa: E731 - as a chain runs it
    found = recorded(stretch.module, stretch.layouts, partial(run, stretch.module))
    assert points_of(stretch, found, run) == expected


def test_what_a_run_passes_is_kept_as_it_was_there() -> None:
    class InPlace(Block):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            y = self.norm1(x)
            return x.add_(self.o(y))

    torch.manual_seed(0)
    block, hidden = InPlace().eval().requires_grad_(False), torch.randn(2, 12, WIDTH)
    sums = Sums(block, lambda: block(hidden.clone()))
    sums()
    assert len(sums.seen) == 2 and torch.equal(sums.seen[0], hidden) and not torch.equal(sums.seen[1], hidden)
