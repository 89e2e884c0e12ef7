"""Bags of embeddings are mixtures of rows: what is found of them is what the same written out gives."""

import pytest
import torch
from torch import Tensor, nn

import waterfill

TOKENS = torch.randint(0, 12, (40, 5), generator=torch.Generator().manual_seed(1))


class Bags(nn.Module):
    """The rows of a bag mixed, by the layer of torch or by hand."""

    def __init__(self, mode: str, by_hand: bool, flat: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.bag = nn.EmbeddingBag(14, 8, mode=mode)
            self.head = nn.Linear(8, 4)
        self.by_hand, self.flat = by_hand, flat

    def forward(self, tokens: Tensor) -> Tensor:
        if self.by_hand:
            shares = nn.functional.one_hot(tokens, 14).float().sum(1) / (1 if self.bag.mode == "sum" else 5)
            return self.head(shares @ self.bag.weight)
        if self.flat:
            return self.head(self.bag(tokens.reshape(-1), torch.arange(0, tokens.numel(), 5)))
        return self.head(self.bag(tokens))


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("flat", [False, True])
def test_a_bag_costs_what_the_product_costs(mode, flat) -> None:
    bag, product = (waterfill.calibrate(Bags(mode, hand, flat), TOKENS.split(10)) for hand in (False, True))
    a, b = bag["bag.weight"], product["bag.weight"]
    assert not bag.notes and a.gram.shape == (8, 8)
    assert torch.allclose(a.gram / a.gram.trace(), b.gram / b.gram.trace(), rtol=1e-3, atol=1e-5)
    totals = [float(value.rows.sum() * value.gram.trace()) for value in (a, b)]
    assert totals[0] == pytest.approx(totals[1], rel=0.01)
    assert float(a.rows[:12].min()) > 0 and a.rows[12:].max() < a.rows[:12].median()


def test_weights_of_samples_and_the_largest_of_a_bag_are_seen_too() -> None:
    class Weighted(nn.Module):
        def __init__(self, mode: str) -> None:
            super().__init__()
            self.bag, self.mode = nn.EmbeddingBag(14, 8, mode=mode), mode

        def forward(self, tokens: Tensor) -> Tensor:
            shares = 1.0 + (tokens == 3).float() * 9 if self.mode == "sum" else None
            return self.bag(tokens, per_sample_weights=shares)

    rows = waterfill.calibrate(Weighted("sum"), TOKENS.split(10))["bag.weight"].rows
    assert int(rows.argmax()) == 3
    assert waterfill.calibrate(Weighted("max"), TOKENS.split(10))["bag.weight"].gram is not None
