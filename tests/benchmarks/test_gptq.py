"""The benchmarks' opponent is the algorithm that was published: against the unblocked one that follows its text."""

import sys

import pytest
import torch
from tests.support.places import BENCHMARKS

from waterfill import Importance


@pytest.fixture
def gptq(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from opponents import gptq as module

    yield module
    sys.modules.pop("opponents.gptq", None)


def inputs_gram(cols: int) -> torch.Tensor:
    mixed = torch.randn(3 * cols, cols) @ (torch.eye(cols) + torch.randn(cols, cols) / cols**0.5)
    return mixed.T @ mixed / len(mixed)


def one_by_one(weight, hessian, width, group):
    """Optimal brain quantization in the order of the columns: the inverse shrinks by one elimination a column."""
    W = weight.double().clone()
    H = hessian.double().clone()
    H += 0.01 * H.diagonal().mean() * torch.eye(len(H), dtype=torch.float64)
    inverse = torch.linalg.inv(H)
    restored = torch.zeros_like(W)
    top = 2**width - 1
    for i in range(W.shape[1]):
        if i % group == 0:
            piece = W[:, i : i + group]
            low, high = piece.min(1).values.clamp(max=0), piece.max(1).values.clamp(min=0)
            scale = ((high - low) / top).half().double()
            zero = (-low / scale).round()
        restored[:, i] = (((W[:, i] / scale).round() + zero).clamp(0, top) - zero) * scale
        error = (W[:, i] - restored[:, i]) / inverse[i, i]
        W -= error[:, None] * inverse[i]
        inverse = inverse - torch.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return restored


@pytest.mark.parametrize(
    ("cols", "group"), [(40, 128), (300, 128), (300, 32), pytest.param(300, 256, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("width", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_blocks_change_nothing(gptq, cols, group, width):
    """Up to codes at the edge of two cells, where the last bits of float32 decide."""
    weight, hessian = torch.randn(12, cols), inputs_gram(cols)
    found = gptq.quantize(weight, hessian, width, group).dense()
    wanted = one_by_one(weight, hessian, width, group).float()
    assert float(((found - wanted).abs() < 1e-4).float().mean(1).quantile(0.5)) == 1.0
    metric = Importance(gram=hessian)
    assert metric.distortion(weight - found) == pytest.approx(metric.distortion(weight - wanted), rel=0.02)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_better_than_rounding_to_nearest(gptq, width):
    weight, hessian = torch.randn(64, 256), inputs_gram(256)
    metric = Importance(gram=hessian)
    rounded = gptq.quantize(weight, torch.eye(256), width).dense()
    found = gptq.quantize(weight, hessian, width).dense()
    assert metric.distortion(weight - found) < 0.75 * metric.distortion(weight - rounded)


def test_the_identity_is_rounding_to_nearest(gptq):
    weight = torch.randn(5, 200)
    for g, piece in enumerate(weight.split(128, 1)):
        scale = ((piece.amax(1) - piece.amin(1)) / 7).half().float()[:, None]
        zero = (-piece.amin(1, keepdim=True) / scale).round()
        wanted = (((piece / scale).round() + zero).clamp(0, 7) - zero) * scale
        assert torch.equal(gptq.quantize(weight, torch.eye(200), 3).dense()[:, 128 * g : 128 * g + 128], wanted)


def test_dead_columns_and_rows_of_zeros(gptq):
    hessian = inputs_gram(30)
    hessian[4], hessian[:, 4] = 0, 0
    weight = torch.randn(6, 30)
    weight[2] = 0
    found = gptq.quantize(weight, hessian, 4).dense()
    assert bool(torch.isfinite(found).all()) and bool((found[:, 4] == 0).all()) and bool((found[2] == 0).all())


def state_of_layers():
    return {
        "a.weight": torch.randn(40, 200),
        "b.weight": 3 * torch.randn(16, 8, 3, 3),
        "a.bias": torch.randn(40),
        "seen": torch.tensor(7),
    }


def test_bytes_are_those_of_packed_codes_scales_and_zeros(gptq):
    rounding = gptq.Opponent(state_of_layers(), {})
    groups = 40 * 2 + 16 * 1
    assert rounding.size(3) == (3 * (8000 + 1152) + groups * 19) // 8 + 2 * 40 + 8
    coded = gptq.Opponent(state_of_layers(), {}, coded=True)
    assert 0.7 * rounding.size(3) < coded.size(3) < rounding.size(3)


@pytest.mark.parametrize("coded", [False, True])
def test_budgets_between_two_widths(gptq, coded):
    """Every budget is met nearly to the byte, and more bytes are never worse."""
    state = state_of_layers()
    metric = Importance(gram=inputs_gram(200))
    found = gptq.Opponent(state, {"a.weight": metric}, coded)
    errors = []
    for budget in range(found.size(2), found.size(4) + 1, 157):
        size, restored = found.within(budget)
        assert budget - 200 < size <= budget
        assert list(restored) == list(state) and torch.equal(restored["seen"], state["seen"])
        gap = {name: state[name].flatten(1) - restored[name].flatten(1) for name in ("a.weight", "b.weight")}
        errors.append(metric.distortion(gap["a.weight"]) + Importance().distortion(gap["b.weight"]))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.1 * errors[0]
    with pytest.raises(ValueError, match="one bit"):
        found.within(1000)
