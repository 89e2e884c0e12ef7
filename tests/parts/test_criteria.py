"""Prune by its criteria: which entries go when inputs are known to correlate, and sums in the metric of the data."""

import pytest
import torch

from waterfill.importance import Importance, smooth_gram
from waterfill.part import SumPart, cost, decode
from waterfill.parts import LowRank, Prune, Quantize
from waterfill.parts.pruning.criteria import CRITERIA
from waterfill.parts.pruning.refit import refit

FINE = 1e-10  # a price at which values are all but exact


def spread(rows: int, cols: int) -> torch.Tensor:
    """A matrix of distinct nonzero values."""
    return (torch.randperm(rows * cols) + 1.0).reshape(rows, cols) * torch.where(torch.rand(rows, cols) < 0.5, -1, 1)


def correlated(rows: int, cols: int) -> tuple[torch.Tensor, Importance]:
    """A weight, and a Gram matrix of inputs that resemble each other and differ in size."""
    mixing = torch.eye(cols) + 0.1 * torch.randn(cols, 6) @ torch.randn(6, cols) + 0.7 / cols
    inputs = torch.randn(4 * cols, cols) @ mixing
    return torch.randn(rows, cols), Importance(rows=torch.rand(rows) + 0.5, gram=inputs.T @ inputs / len(inputs))


def left(spec: Prune, target: torch.Tensor, importance: Importance) -> float:
    return importance.distortion(target - spec.fit(target, importance, FINE).dense())


def test_wide_layers_know_their_correlations_too() -> None:
    target, importance = correlated(4, 600)
    lost = {criterion: left(Prune(keep=0.5, criterion=criterion), target, importance) for criterion in CRITERIA}
    assert lost["hessian"] < lost["activation"]


@pytest.mark.parametrize(
    "pattern",
    ["rows", "columns", "4x4", "2:4", *(pytest.param(name, marks=pytest.mark.slow) for name in ("entry", "1x4"))],
)
def test_correlations_are_made_use_of(pattern: str) -> None:
    """What others can stand in for goes first: less is lost on the same share of units, over a few weights."""
    keep = None if ":" in pattern else 0.5
    lost = dict.fromkeys(CRITERIA, 0.0)
    for _ in range(4):
        target, importance = correlated(32, 48)
        for criterion in CRITERIA:
            lost[criterion] += left(Prune(keep=keep, pattern=pattern, criterion=criterion), target, importance)
    assert lost["auto"] < 0.99 * min(lost["activation"], lost["magnitude"])
    assert pattern == "4x4" or lost["hessian"] < lost["activation"]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("pattern", ["entry", "rows", "columns", "4x3", "2:4", "1:5"])
def test_every_criterion_for_every_pattern(criterion: str, pattern: str) -> None:
    """The share that is asked for is kept exactly, and all kept values are the best ones on their support."""
    target, importance = correlated(10, 13)
    part = Prune(keep=None if ":" in pattern else 0.4, pattern=pattern, criterion=criterion).fit(
        target, importance, FINE
    )
    if ":" not in pattern:
        assert int(part.mask.sum()) == round(0.4 * part.mask.numel())
    support = part.pattern.scatter(torch.ones(part.values.shape), part.mask, (10, 13)) > 0
    error = (target - part.dense()) @ importance.gram
    assert float(error[support].abs().max()) < 1e-3 * float((target @ importance.gram).abs().max())
    assert decode(part.encode(), part.shape) == part


def test_surgery_without_correlation_is_magnitude_times_input() -> None:
    """A diagonal Gram matrix: nothing can be made up for, so the saliency is g A_ii w^2."""
    target, diagonal, rows = spread(12, 20), torch.rand(20) + 0.1, torch.rand(12) + 0.1
    gram = Importance(rows=rows, gram=torch.diag(diagonal))
    mask = Prune(keep=0.3, criterion="hessian").fit(target, gram, FINE).mask
    gain = (target.square() * torch.outer(rows, diagonal)).flatten()
    assert set(mask.flatten().nonzero()[:, 0].tolist()) == set(gain.argsort(descending=True)[:72].tolist())


def test_the_saliency_is_what_a_column_costs_when_the_others_make_up_for_it() -> None:
    target, importance = correlated(6, 9)
    for pattern, count in (("columns", 8), ("entry", 53)):
        part = Prune(keep=count / (9 if pattern == "columns" else 54), pattern=pattern, criterion="hessian")
        found = left(part, target, importance)
        alone = [torch.ones(6, 9, dtype=torch.bool) for _ in range(9 if pattern == "columns" else 54)]
        for i, support in enumerate(alone):
            support[(slice(None), i) if pattern == "columns" else divmod(i, 9)] = False
        errors = [importance.distortion(target - refit(target, support, importance)) for support in alone]
        if pattern == "columns":
            assert found == pytest.approx(min(errors), rel=1e-3)
        else:
            assert found < sorted(errors)[len(errors) // 4]


def test_activations_are_compared_within_rows() -> None:
    target = spread(8, 20) * 10.0 ** torch.arange(8)[:, None]
    mask = Prune(keep=0.25, criterion="activation").fit(target, Importance(), FINE).mask
    assert mask.sum(1).tolist() == [5] * 8
    assert all(set(w[m].tolist()) == set(sorted(w.tolist())[-5:]) for w, m in zip(target.abs(), mask, strict=True))


def test_magnitude_looks_at_nothing_else() -> None:
    target = spread(6, 8)
    importance = Importance(rows=torch.rand(6), diagonal=torch.rand(8))
    mask = Prune(keep=0.5, criterion="magnitude").fit(target, importance, FINE).mask
    assert float(target.abs()[mask].min()) > float(target.abs()[~mask].max())


@pytest.mark.parametrize("pattern", ["entry", "columns", pytest.param("2x2", marks=pytest.mark.slow)])
def test_surgery_buys_by_the_price(pattern: str) -> None:
    target, importance = correlated(30, 40)
    kept, costs = [], []
    for price in (1.0, 1e-1, 1e-2):
        parts = {c: Prune(pattern=pattern, criterion=c).fit(target, importance, price) for c in CRITERIA}
        kept.append(float(parts["hessian"].mask.float().mean()))
        costs.append({c: cost(part, target, importance, price) for c, part in parts.items()})
    assert kept == sorted(kept) and kept[0] < kept[-1]
    assert costs[0]["hessian"] < 0.95 * costs[0]["magnitude"]
    assert costs[0]["auto"] < 0.97 * min(costs[0]["activation"], costs[0]["magnitude"])
    assert all(found["auto"] < 1.05 * min(found.values()) for found in costs)


def test_importance_of_no_data_changes_nothing() -> None:
    """A spatial kernel's Gram matrix is an assumption: the automatic criterion is the one without correlations."""
    target, importance = torch.randn(12, 18), Importance(gram=smooth_gram((3, 3), 0.7), kernel=(3, 3))
    for keep in (0.3, None):
        found = Prune(keep=keep).fit(target, importance, 1e-2).mask
        gain = target.square() * importance.gram.diagonal().repeat(2)
        assert float(gain[found].min()) > float(gain[~found].max())


@pytest.mark.parametrize("other", [Prune(), LowRank()])
def test_a_sum_never_costs_more_than_its_best_term(other: Prune | LowRank) -> None:
    target, importance = correlated(40, 36)
    target = target + (torch.rand(40, 36) < 0.02) * 20
    for price in (1e-1, 1.0):
        terms = [spec.fit(target, importance, price) for spec in (Quantize(), other)]
        both = (Quantize() + other).fit(target, importance, price)
        assert cost(both, target, importance, price) <= min(cost(t, target, importance, price) for t in terms)


def test_outliers_beside_codes_in_the_metric_of_the_data() -> None:
    inputs = torch.randn(400, 64) @ (torch.eye(64) + 0.1 * torch.randn(64, 64))
    importance = Importance(gram=inputs.T @ inputs / 400)
    target = 0.3 * torch.randn(64, 64) + (torch.rand(64, 64) < 0.01) * 30 * torch.randn(64, 64)
    alone = [spec.fit(target, importance, 0.02) for spec in (Quantize(), Prune())]
    both = (Quantize() + Prune()).fit(target, importance, 0.02)
    costs = [cost(part, target, importance, 0.02) for part in (*alone, both)]
    assert isinstance(both, SumPart) and costs[2] < 0.99 * min(costs[:2])
