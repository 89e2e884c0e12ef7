"""Weights fitted once more in the order of the network: stages, their pace, and the budget."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from waterfill.calibration.calibrate import calibrate
from waterfill.compression.allocation.budget import Budget
from waterfill.compression.allocation.curve import Curve, Point
from waterfill.compression.allocation.to_size.spend import Ledger
from waterfill.compression.options import Options, Steps
from waterfill.compression.steps.sequential import _BudgetController, _late, _stages, refit_in_order
from waterfill.compression.task import Task, in_memory, model_of
from waterfill.model.compressed import CompressedModel
from waterfill.network.running.inputs import Inputs

BITS = st.lists(st.floats(1, 1e6), min_size=1, max_size=30)


def ledger_of(bits: list[float], price: float = 1e-3) -> Ledger:
    return Ledger(dict.fromkeys(range(len(bits)), price), dict(enumerate(bits)))


@given(BITS, st.integers(1, 20))
def test_stages_keep_the_order_and_share_out_the_bits(bits, count) -> None:
    order = list(np.random.default_rng(0).permutation(len(bits)))
    stages = list(_stages(order, ledger_of(bits), count))
    assert [i for stage in stages for i in stage] == order
    assert len(stages) <= max(count, len(order) if len(order) <= count else 0) + 1
    if len(order) <= count:
        assert all(len(stage) == 1 for stage in stages)
    for stage in stages:
        assert len(stage) == 1 or sum(bits[i] for i in stage[:-1]) < sum(bits) / count * (1 + 1e-9)


@given(BITS)
def test_the_late_ones_are_a_quarter_of_the_bits_and_no_more_than_needed(bits) -> None:
    order = list(range(len(bits)))
    late = _late(order, ledger_of(bits))
    assert sorted(late) == order[-len(late) :] and [bits[i] for i in late] == sorted(bits[i] for i in late)[::-1]
    assert sum(bits[i] for i in late) >= 0.25 * sum(bits) * (1 - 1e-9)
    assert len(late) == 1 or sum(bits[i] for i in sorted(late)[1:]) < 0.25 * sum(bits)


class Line:
    """A weight whose bits fall by `slope` with every factor of 4 in the price."""

    def __init__(self, bits: float, slope: float) -> None:
        self.bits, self.slope = bits, slope
        self.curve = Curve(lambda price: Point(self.at(price), 0.0))

    def at(self, price: float) -> float:
        return self.bits - self.slope * float(np.log2(price / 1e-3)) / 2


class Lines:
    """Stands for a compression with such weights."""

    def __init__(self, count: int) -> None:
        self.weights = [Line(1000.0 + 100 * i, 300.0) for i in range(count)]


def paced(extra: float, allowed: bool, count: int = 12) -> tuple[list[float], Ledger]:
    """The prices in turn where every weight takes `extra` bits beyond its curve; and what was spent."""
    lines = Lines(count)
    ledger = ledger_of([line.bits for line in lines.weights])
    pace = _BudgetController(lines, ledger, ledger.total if allowed else None, list(range(count)))
    prices = []
    for i, line in enumerate(lines.weights):
        prices.append(pace.price(i))
        ledger.prices[i], ledger.bits[i] = prices[-1], line.at(prices[-1]) + extra
    return prices, ledger


def test_prices_stay_while_the_budget_does() -> None:
    for allowed in (True, False):
        assert paced(0.0, allowed)[0] == pytest.approx([1e-3] * 12)


@pytest.mark.parametrize("extra", [20.0, -20.0])
def test_prices_follow_what_the_weights_before_have_spent(extra) -> None:
    prices, ledger = paced(extra, True)
    steps = np.diff(prices) * np.sign(extra)
    assert prices[0] == pytest.approx(1e-3) and (steps[:-1] > 0).all()
    assert all(4**-0.25 <= price / 1e-3 <= 4**0.25 for price in prices)
    first = sum(line.bits for line in Lines(12).weights)
    assert abs(ledger.total - first) < 0.5 * 12 * abs(extra)


def test_without_a_budget_each_weight_keeps_its_price() -> None:
    assert paced(50.0, False)[0] == [1e-3] * 12


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 40)
        self.second = nn.Linear(40, 40)
        self.third = nn.Linear(40, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


def inputs(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(5, 10, generator=torch.Generator().manual_seed(3))
    return torch.randn(count, 5, generator=generator) @ mixing


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return Net().eval()


def refitted(net: nn.Module, stages: int, budget: bool = True) -> tuple[CompressedModel, CompressedModel, int]:
    """The same compression before and after, and its limit in bytes."""
    batches = list(inputs(192, 1).split(64))
    work = in_memory(Task.of(net, "Quantize()", calibrate(net, batches)), Options(steps=Steps(stages=stages)))
    target = Budget(bits=4) if budget else Budget(price=1e-5)
    ledger = work.meet(target)
    before = model_of(work)
    refit_in_order(work, ledger, net, Inputs(batches), work.task.allowed(target))
    assert ledger.bits == {i: 8.0 * len(entry.blob) for i, entry in work.store.entries.items()}
    return before, model_of(work), work.task.allowed(target)


def lost(net: nn.Module, made: CompressedModel) -> float:
    x = inputs(256, 2)
    with torch.no_grad():
        return float((made.install(Net())(x) - net(x)).norm() / net(x).norm())


@pytest.mark.parametrize("stages", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_the_budget_is_kept_whatever_the_stages(net, stages) -> None:
    before, after, allowed = refitted(net, stages)
    assert 0.97 * allowed < after.size <= allowed
    assert stages == 1 or lost(net, after) < lost(net, before)


def test_at_a_price_sizes_may_move_but_prices_do_not(net) -> None:
    before, after, _ = refitted(net, 16, budget=False)
    assert lost(net, after) < lost(net, before)
    assert after.size == pytest.approx(before.size, rel=0.1)


def test_errors_are_measured_from_the_original_weights(net) -> None:
    _, after, _ = refitted(net, 16)
    for entry in after.entries.values():
        original = net.state_dict()[entry.name].double()
        found = float((entry.tensor().double() - original).norm() / original.norm())
        assert entry.error == pytest.approx(found, rel=1e-6)
