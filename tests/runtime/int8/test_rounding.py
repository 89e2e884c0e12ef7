"""How inputs and weights are rounded to 8 bits: outlier channels, ranges, and what is kept."""

import pytest
import torch
from torch import Tensor, nn

from waterfill import runtime
from waterfill.runtime.int8 import order
from waterfill.runtime.int8.rounding import Given, Rounded, rounded


def given(weight: Tensor, rows: Tensor, groups: int = 1) -> Given:
    low, high = rows.aminmax(dim=0)
    return Given(weight, rows, low, high, None, groups)


def error(made: Rounded, weight: Tensor, rows: Tensor) -> float:
    """The squared error of an output vector."""
    q = (rows * made.channels / made.step + made.zero + 0.5).floor().clamp(0, 255)
    found = (q - made.zero) * made.step @ (made.codes * made.scales[:, None]).T
    return float((found - rows @ weight.T).square().sum(1).mean())


def test_the_error_is_estimated_well_and_outlier_channels_go_into_the_weights() -> None:
    torch.manual_seed(0)
    weight, rows = torch.randn(24, 32), torch.randn(4000, 32)
    rows[:, 5] *= 100
    weight[:, 5] /= 100
    made = rounded([given(weight, rows)], 127)[0]
    assert made.error == pytest.approx(error(made, weight, rows), rel=0.2)
    assert float(made.channels[5] / made.channels.median()) == pytest.approx(0.01, rel=0.5)
    plain = given(weight, rows)
    coarse = float((rows[:, 5].max() - rows[:, 5].min()) / 255) ** 2 / 12 * float(plain.energy.sum())
    assert made.error < coarse / 100


def test_a_rare_large_input_is_clipped_where_a_finer_step_is_worth_more() -> None:
    torch.manual_seed(0)
    weight, rows = torch.randn(8, 16), torch.rand(2000, 16)
    assert 255 * rounded([given(weight, rows)], 127)[0].step > 0.95  # nothing is far from the others
    rows[7, 3] = 3.0
    made = rounded([given(weight, rows)], 127)[0]
    assert 255 * made.step < 2.5 and made.zero == 0
    assert made.error == pytest.approx(error(made, weight, rows), rel=0.3)


def test_channels_of_groups_have_their_own_factors() -> None:
    torch.manual_seed(0)
    weight, rows = torch.randn(8, 2 * 9), torch.randn(500, 4) * torch.tensor([1.0, 50.0, 1.0, 1.0])
    made = rounded([given(weight, rows, groups=2)], 127)[0]
    assert made.channels.shape == (4,) and made.channels[1] < made.channels[[0, 2, 3]].min() / 3
    wanted = given(weight, rows, groups=2).times(weight, 1 / made.channels) / made.scales[:, None]
    assert (made.codes - wanted).abs().max() <= 0.5 + 1e-4 and made.codes.abs().max() == 127


@torch.no_grad()
def test_linear_layers_with_an_outlier_channel_lose_less_than_by_rounding_alone() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(64, 64)).eval(), torch.randn(64, 64)
    net[0].weight[:, 9] /= 200
    x[:, 9] *= 200
    wanted, units = net(x), x.abs().amax(1, keepdim=True) / 127
    alone = (x / units).round() * units @ net[0].weight.T + net[0].bias
    made = runtime.quantize_activations(net, x.split(16), limit=1.0, logits=False)
    clever = torch.cat([made(row) for row in x.split(1)])  # alone: many would be multiplied as floats
    assert (clever - wanted).norm() < (alone - wanted).norm() / 5


def test_threads_share_the_inputs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    x, factors = torch.randn(3, 50, 40, 9), torch.rand(50) * 40
    for given_x in (x, x.contiguous(memory_format=torch.channels_last)):
        alone, turned = order.rounded(given_x, factors, 9), order.first(given_x)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "get_num_threads", lambda: 3)
            many = order.rounded(given_x, factors, 9)
            assert alone is not None and many is not None
            assert torch.equal(alone, many) and torch.equal(order.first(given_x), turned)
