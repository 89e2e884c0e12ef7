"""The LC algorithm: its steps are the published ones, it reaches known optima, and budgets are met."""

import copy
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from tests.support.toy_learning import X, Y, accuracy, net, trained
from torch import Tensor, nn

import waterfill
from waterfill import Budget, Importance
from waterfill.errors import BadInput, BadRecipe, BudgetError
from waterfill.learn import LC, Schedule


def matrix(rows: int = 12, cols: int = 15, seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(cols, rows, bias=False)


def projected(spec: str, weight: Tensor) -> Tensor:
    """What a C step at w makes of one matrix."""
    model = matrix(*weight.shape)
    with torch.no_grad():
        model.weight.copy_(weight)
    lc = LC(model, spec, schedule=Schedule(mu=1e-3))
    lc.c_step()
    return lc.result().state_dict()["weight"]


W = torch.randn(12, 15, generator=torch.Generator().manual_seed(5))


def test_pruning_keeps_the_largest() -> None:
    kept = projected("Prune(keep=0.1, values=Dense(format='float32'))", W)
    largest = W.abs().flatten().topk(18).indices
    expected = torch.zeros(W.numel()).scatter(0, largest, W.flatten()[largest])
    assert torch.equal(kept.flatten(), expected)


def test_a_rank_is_the_truncated_svd() -> None:
    u, s, v = torch.linalg.svd(W.double())
    expected = (u[:, :3] * s[:3]) @ v[:3]
    found = projected("LowRank(rank=3, factors=Dense(format='float32'))", W)
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_binary_codes_are_the_mean_magnitude() -> None:
    found = projected("Codebook(levels=2, values='binary')", W)
    assert torch.allclose(found, W.sign() * W.abs().mean(), rtol=1e-3)


def test_a_codebook_is_exact_k_means() -> None:
    values = W.flatten()[:14].sort().values.double()
    found = projected("Codebook(levels=3)", values.float().reshape(7, 2).repeat(1, 6))
    best = min(
        sum(float((part - part.mean()).square().sum()) for part in values.tensor_split(cuts))
        for cuts in combinations(range(1, 14), 2)
    )
    assert float((found[:, :2].flatten().double() - values).square().sum()) == pytest.approx(best, rel=1e-3)


def test_the_penalty_pulls_with_its_gradient() -> None:
    model = matrix()
    lc = LC(model, "Codebook(levels=2)", schedule=Schedule(mu=0.25))
    lc.c_step()
    lc.multipliers_step()
    with torch.no_grad():
        model.weight.add_(0.1 * torch.randn(12, 15, generator=torch.Generator().manual_seed(1)))
    compressed, mu = lc.state()["compressed.weight"], lc.mu
    multiplier = -0.25 * (matrix().weight - compressed).detach()
    lc.penalty().backward()
    assert mu == pytest.approx(0.25 * 1.1)
    assert torch.allclose(model.weight.grad, mu * (model.weight - compressed) - multiplier, atol=1e-6)


def test_the_penalty_is_in_the_metric_that_was_given() -> None:
    model = matrix()
    inputs = torch.randn(40, 15, generator=torch.Generator().manual_seed(2))
    importance = Importance(rows=torch.rand(12) + 0.5, gram=inputs.T @ inputs / 40)
    lc = LC(model, "Codebook(levels=2)", schedule=Schedule(mu=0.5), importance={"weight": importance})
    lc.c_step()
    gap = model.weight.detach() - lc.state()["compressed.weight"]
    assert float(lc.penalty().detach()) == pytest.approx(0.5 * importance.distortion(gap), rel=1e-4)


@pytest.mark.parametrize("multipliers", [True, False])
def test_the_constrained_optimum_of_a_quadratic_is_reached(multipliers: bool) -> None:
    """Of 1/2 sum h (w - c)^2 with at most k entries that are not zero: the k with the largest h c^2, unchanged."""
    generator = torch.Generator().manual_seed(3)
    h, c = torch.rand(12, 15, generator=generator) + 0.2, torch.randn(12, 15, generator=generator)
    model = matrix()
    with torch.no_grad():
        model.weight.copy_(c)
    schedule = Schedule(mu=0.02, growth=1.2, multipliers=multipliers)
    lc = LC(model, "Prune(keep=0.2, values=Dense(format='float32'))", schedule=schedule)
    lc.c_step()
    for _ in range(45):
        with torch.no_grad():  # the L step in closed form
            gradient_free = (lc.mu * lc._learned[0].compressed + lc._learned[0].multiplier + h * c) / (h + lc.mu)
            model.weight.copy_(gradient_free)
        lc.c_step()
        lc.multipliers_step()
    found = lc.result().state_dict()["weight"]
    loss = float((h * (found - c).square()).sum())
    best = (h * c.square()).flatten().sort().values[: 180 - 36].sum()
    assert loss < (1.03 if multipliers else 1.15) * float(best)


def learned(lc: LC, steps: int = 14) -> LC:
    """After some steps on a toy problem."""
    optimizer = torch.optim.SGD(lc.parameters(), lr=0.05, momentum=0.9)
    lc.start(lambda: F.cross_entropy(lc.model(X), Y))
    for _ in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lc.learning_rate(0.05)
        for x, y in zip(X.split(64), Y.split(64), strict=True):
            optimizer.zero_grad()
            (F.cross_entropy(lc.model(x), y) + lc.penalty()).backward()
            optimizer.step()
        lc.c_step()
        lc.multipliers_step()
    return lc


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return trained()


@pytest.mark.parametrize(
    "spec", ["Codebook(levels=2)", pytest.param("Codebook(levels=2) + Prune(keep=0.02)", marks=pytest.mark.slow)]
)
def test_a_network_learns_to_be_compressed(original: nn.Module, spec: str) -> None:
    model = copy.deepcopy(original)
    at_once = LC(copy.deepcopy(original), spec, schedule=Schedule(mu=1.0))
    at_once.c_step()
    direct = accuracy(at_once.result().install(net()))
    made = learned(LC(model, spec, schedule=Schedule(growth=1.4))).result()
    after = accuracy(made.install(net()))
    assert after > direct + 0.3 * (accuracy(original) - direct)
    assert made.notes["recipe"] == repr(waterfill.parse(spec)) and not made.entries["0.weight"].reason


def test_a_budget_is_met_whatever_was_learned(original: nn.Module, tmp_path) -> None:
    lc = learned(LC(copy.deepcopy(original), "Quantize()", budget=Budget(bits=1.5), schedule=Schedule(growth=1.4)), 6)
    made = lc.result()
    assert 0.9 * 1.5 <= made.bits <= 1.5
    assert made.save(tmp_path / "m.wf") == made.size
    state = waterfill.load(tmp_path / "m.wf").state_dict()
    assert all(torch.equal(state[name], value) for name, value in made.state_dict().items())


def test_each_layer_may_have_its_own_spec(original: nn.Module) -> None:
    lc = LC(copy.deepcopy(original), {"0.*": "LowRank(rank=2)", "2.*": "Codebook(levels=4)"}, schedule=Schedule(mu=1.0))
    lc.c_step()
    words = {row["name"]: row["part"] for row in lc.result().table()}
    assert "rank 2" in words["0.weight"] and "4 levels" in words["2.weight"] and "mantissa" in words["4.weight"]


def test_a_snapshot_goes_on_as_if_nothing_had_been(original: nn.Module) -> None:
    lc = learned(LC(copy.deepcopy(original), "Codebook(levels=2)"), 2)
    again = LC(copy.deepcopy(lc.model), "Codebook(levels=2)")
    again.load({name: value.clone() for name, value in lc.state().items()})
    assert again.mu == lc.mu and torch.equal(again.penalty(), lc.penalty())


def test_what_cannot_be_learned_says_so(original: nn.Module) -> None:
    with pytest.raises(BadInput, match="nothing to learn"):
        LC(nn.LayerNorm(8), "Quantize()")
    with pytest.raises(BadRecipe, match="none"):
        LC(copy.deepcopy(original), {})
    with pytest.raises(BudgetError, match="smallest"):
        LC(copy.deepcopy(original), "Quantize()", budget=Budget(size=50))
    with pytest.raises(BadInput, match=r"Schedule\(mu"):
        LC(copy.deepcopy(original), "Quantize()").penalty()
