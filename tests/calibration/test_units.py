"""What errors cost does not depend on the unit of the outputs, and nowhere is it nothing for want of evidence."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import waterfill

X = torch.randn(192, 32, generator=torch.Generator().manual_seed(0))
TEST = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))


def net(scale: float = 1.0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 8)).eval()
    with torch.no_grad():
        model[2].weight *= scale
        model[2].bias *= scale
    return model


def lost(model: nn.Module, made: waterfill.CompressedModel, inputs: Tensor, scale: float = 1.0) -> float:
    """The relative error of the outputs."""
    with torch.no_grad():
        wanted = model(inputs).double() / scale
        found = made.install(model)(inputs).double() / scale
    return float((found - wanted).norm() / wanted.norm())


@cache
def made(scale: float, spec: str, **budget: float) -> waterfill.CompressedModel:
    """The network with outputs in another unit, compressed with inputs."""
    return waterfill.compress(net(scale), list(X.split(48)), spec=spec, **budget)


@pytest.mark.parametrize("scale", [1e-14, pytest.param(1e8, marks=pytest.mark.slow)])
def test_the_unit_of_the_outputs_is_nothing(scale) -> None:
    plain, scaled = waterfill.calibrate(net(), X.split(48)), waterfill.calibrate(net(scale), X.split(48))
    assert scaled.unit == pytest.approx(scale**2 * plain.unit)
    for name, power in (("0.weight", 0), ("0.bias", 0), ("2.weight", 2)):
        a, b = (float(found[name].rows.sum() * _trace(found[name])) for found in (plain, scaled))
        assert b * scale**power == pytest.approx(a, rel=1e-3)
    errors = [lost(net(s), made(s, "Quantize()", bits=5), TEST, s) for s in (1.0, scale)]
    assert errors[1] < 1.2 * errors[0] < 0.2


def _trace(importance: waterfill.Importance) -> Tensor:
    return importance.diagonal.double().sum() if importance.gram is None else importance.gram.double().trace()


@pytest.mark.parametrize("scale", [1e12, pytest.param(1e-12, marks=pytest.mark.slow)])
def test_a_price_means_the_same_in_any_unit(scale) -> None:
    sizes = [made(s, "Quantize() | LowRank()", price=1e-5).size for s in (1.0, scale)]
    assert abs(sizes[1] - sizes[0]) < 0.02 * sizes[0]


def test_the_unit_of_a_loss_is_nothing_to_a_budget() -> None:
    def costs(scale: float) -> waterfill.compress:
        return waterfill.calibrate(net(), X.split(48), importance=lambda y, _: scale * y.square().mean())

    errors = [lost(net(), waterfill.compress(net(), bits=5, importance=costs(s)), TEST) for s in (1.0, 1e-14, 1e14)]
    assert max(errors) < 1.2 * min(errors)


class Places(nn.Module):
    """Places of a sequence as rows of a parameter, and styles as rows that are picked."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.style = nn.Parameter(torch.randn(64, 32)), nn.Parameter(1 + 0.3 * torch.randn(8, 32))
        self.head = nn.Linear(32, 16)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.head(torch.tanh(x + self.place[: x.shape[1]]) * self.style[style][:, None])


def test_rows_that_nothing_was_met_at_cost_two_bits_less_than_typical_ones_and_are_counted() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Places().eval(), torch.randn(48, 64, 32)
    batches = [(b[:, :12], torch.arange(16) % 2) for b in x.split(16)]
    found = waterfill.calibrate(model, batches)
    rows, picked = found["place"].rows, found["style"].rows
    assert torch.allclose(rows[12:], rows[:12].mean() / 16, rtol=0.1)
    assert torch.allclose(picked[2:], picked[:2].mean() / 16, rtol=0.1)
    made = waterfill.compress(model, batches, spec="Quantize()", bits=5)
    assert "52 of 64 rows" in made.warnings["place"] and "6 of 8 rows" in made.warnings["style"]
    assert set(made.warnings) == {"place", "style"}
    blind = waterfill.compress(model, bits=5)
    entries = model.state_dict()["place"][12:]
    gaps = [float((m.state_dict()["place"][12:] - entries).norm() / entries.norm()) for m in (made, blind)]
    assert gaps[0] < 0.25 and gaps[0] < 3 * gaps[1]


def test_columns_that_were_always_zero_are_kept_and_counted() -> None:
    half = X.clone()
    half[:, 16:] = 0
    made = waterfill.compress(net(), list(half.split(48)), spec="Quantize()", bits=5)
    assert made.warnings == {"0.weight": "no batch met 16 of 32 columns: what errors there cost is assumed"}
    blind = lost(net(), waterfill.compress(net(), bits=5), TEST)
    assert lost(net(), made, TEST) < 2 * blind
    cost = waterfill.calibrate(net(), half.split(48))["0.weight"].gram.diagonal()
    assert torch.allclose(cost[16:], cost[:16].mean() / 16, rtol=1e-3)
