"""A quick look at whether a kind may pay, before it is fitted: it may err on the side of yes only."""

import pytest
import torch

from waterfill import Importance, LowRank, Prune, Quantize
from waterfill.part import Spec, cost


def inputs(cols: int, strong: int) -> torch.Tensor:
    """Of which a few columns are a hundred times as large as the others, and all correlate."""
    x = torch.randn(400, cols) @ (torch.eye(cols) + 0.3 * torch.randn(cols, cols) / cols**0.5)
    return x * torch.where(torch.arange(cols) < strong, 1.0, 0.01)


def case(kind: str) -> tuple[torch.Tensor, Importance]:
    torch.manual_seed(0)
    weight = torch.randn(48, 64)
    x = inputs(64, 20 if kind == "few columns" else 64)
    if kind == "thin":
        weight = torch.randn(48, 2) @ torch.randn(2, 64)
    rows = torch.linspace(0.1, 3.0, 48)
    return weight, Importance(rows, gram=x.T @ x / len(x), damping=1e-3)


SPECS: tuple[Spec, ...] = (LowRank(factors=Quantize(states=64)), Prune(pattern="columns", values=Quantize(states=64)))


@pytest.mark.parametrize("kind", ["full", "thin", "few columns"])
@pytest.mark.parametrize("price", [1e-4, 1e-2, 0.3, 3.0])
@pytest.mark.parametrize("spec", SPECS, ids=["low rank", "columns"])
def test_what_costs_less_by_much_is_never_ruled_out(spec: Spec, price: float, kind: str) -> None:
    weight, importance = case(kind)
    least = cost(Quantize(states=64).fit(weight, importance, price), weight, importance, price)
    found = cost(spec.fit(weight, importance, price), weight, importance, price)
    if found < 0.98 * least:
        assert spec.may_cost_less(weight, importance, price, least)


def test_what_cannot_pay_is_ruled_out_and_what_can_is_not() -> None:
    price = 1e-2
    for spec, suited in zip(SPECS, ("thin", "few columns"), strict=True):
        for kind, expected in (("full", False), (suited, True)):
            weight, importance = case(kind)
            least = cost(Quantize(states=64).fit(weight, importance, price), weight, importance, price)
            assert spec.may_cost_less(weight, importance, price, least) == expected


@pytest.mark.parametrize("spec", [Quantize(), Prune(), Prune(keep=0.5), Prune(pattern="2:4")])
def test_specs_that_cannot_tell_say_yes(spec: Spec) -> None:
    weight, importance = case("full")
    assert spec.may_cost_less(weight, importance, 1e-2, 0.0)
