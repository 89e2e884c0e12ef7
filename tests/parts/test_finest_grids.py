"""Prices beyond what codes can use: the finest that a file can hold, whatever errors cost."""

import pytest
import torch

from waterfill import Importance
from waterfill.parts import Quantize


@pytest.mark.parametrize("states", [0, 64])
@pytest.mark.parametrize("price", [1e-16, 1e-24])
def test_codes_stay_within_what_a_file_holds(states: int, price: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 64, generator=generator)
    inputs = torch.randn(256, 64, generator=generator) * torch.logspace(0, -5, 64)
    importance = Importance(rows=torch.logspace(0, -8, 96), gram=inputs.T @ inputs / 256)
    part = Quantize(states=states).fit(weight, importance, price)
    assert 20 < part.bits / weight.numel() < 24
    assert float((part.dense() - weight).norm() / weight.norm()) < 1e-3
