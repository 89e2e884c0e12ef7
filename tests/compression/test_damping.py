"""The damping suits how much is known of the inputs and what bits cost, and errors count as they do on other inputs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import waterfill
from waterfill.compression.allocation.damping import DAMPINGS, damped
from waterfill.compression.allocation.weight import Weight
from waterfill.importance import Importance
from waterfill.network.layout import layout_of

ROWS = 64
CODES = waterfill.parse("Quantize()")


def root_of(cols: int, decay: float) -> Tensor:
    """R with covariance R R^T of trace `cols`, deviations from 1 down to 10^-decay in random directions."""
    directions = torch.linalg.qr(torch.randn(cols, cols, generator=torch.Generator().manual_seed(cols)))[0]
    root = directions * torch.logspace(0, -decay, cols)
    return root * (cols**0.5 / root.norm())


def seen(root: Tensor, samples: int, seed: int = 0) -> Importance:
    """What two halves of so many Gaussian inputs each tell of their covariance."""
    generator = torch.Generator().manual_seed(seed)
    halves = [torch.randn(samples, len(root), generator=generator) @ root.T for _ in range(2)]
    first, second = (x.T @ x / samples for x in halves)
    return Importance(torch.ones(ROWS), gram=(first + second) / 2, damping=0.1, halves=(first, second))


def weight(cols: int) -> Tensor:
    return torch.randn(ROWS, cols, generator=torch.Generator().manual_seed(1))


def one_weight(target: Tensor, importance: Importance) -> Weight:
    return Weight("w", layout_of(tuple(target.shape), target.dtype), CODES, lambda: target, lambda: importance)


def factor(found: Importance) -> float:
    """How much dearer errors in rows of weight one have become."""
    assert found.rows.shape == (ROWS,) and float(found.rows.std()) < 1e-6
    return float(found.rows.mean())


def test_without_halves_nothing_changes() -> None:
    bare = replace(seen(root_of(8, 1), 20), halves=None)
    assert damped(weight(8), bare, 1e-3) is bare
    diagonal = Importance(diagonal=torch.rand(8))
    assert damped(weight(8), diagonal, 1e-3) is diagonal
    empty = seen(root_of(8, 1), 20)
    assert damped(torch.zeros(0, 8), empty, 1e-3) is empty


@pytest.mark.parametrize("price", [1e-4, 1e-2])
def test_many_inputs_are_trusted_and_few_are_not(price) -> None:
    for cols, decay in ((48, 2), (96, 2)):
        root = root_of(cols, decay)
        found = [damped(weight(cols), seen(root, samples), price) for samples in (10, 100, 20_000)]
        assert found[0].damping >= 0.3 and found[2].damping <= 0.03
        assert found[0].damping > found[1].damping >= found[2].damping
        factors = [factor(value) for value in found]
        assert factors[0] > 2 > factors[1] > 1.1 and 1 <= factors[2] < 1.01


def test_white_inputs_in_plenty_cost_what_they_seem_to() -> None:
    assert factor(damped(weight(32), seen(root_of(32, 0), 50_000), 1e-3)) == pytest.approx(1, abs=0.005)


def test_equal_halves_leave_the_rows_alone() -> None:
    gram = seen(root_of(24, 1), 200).gram
    found = damped(weight(24), Importance(torch.ones(ROWS), gram=gram, halves=(gram, gram)), 1e-3)
    assert factor(found) == 1 and found.damping in DAMPINGS


@pytest.mark.parametrize("samples", [60, 200])
@pytest.mark.parametrize("decay", [0, 1, 2])
def test_rows_count_what_errors_cost_on_other_inputs(samples, decay) -> None:
    root, target = root_of(48, decay), weight(48)
    known, truth = seen(root, samples), Importance(torch.ones(ROWS), gram=root @ root.T)
    found = damped(target, known, 1e-3)
    error = target - CODES.fit(target, found, 1e-3).dense()
    assert found.distortion(error) == pytest.approx(truth.distortion(error), rel=0.12)
    assert known.distortion(error) < truth.distortion(error)


@pytest.mark.parametrize(("samples", "price"), [(15, 1e-3), (100, 1e-3), (100, 3e-2), (5000, 1e-3)])
def test_no_other_damping_serves_other_inputs_much_better(samples, price) -> None:
    root, target = root_of(48, 1.5), weight(48)
    known, truth = seen(root, samples), Importance(torch.ones(ROWS), gram=root @ root.T)

    def cost(damping: float) -> float:
        part = CODES.fit(target, replace(known, damping=damping), price)
        return truth.distortion(target - part.dense()) + price * part.bits

    assert cost(damped(target, known, price).damping) <= 1.02 * min(map(cost, DAMPINGS))


@pytest.mark.parametrize(("cols", "samples"), [(24, 30), (48, 30), (48, 100), (96, 100), (48, 20_000)])
def test_dearer_bits_ask_for_no_less_damping(cols, samples) -> None:
    known = seen(root_of(cols, 2), samples)
    cheap, dear = (damped(weight(cols), known, price).damping for price in (1e-4, 1e-1))
    assert cheap < dear if samples > cols else cheap <= dear


@settings(max_examples=12)
@given(
    st.integers(1, 9),
    st.integers(1, 12),
    st.sampled_from([0.0, 1e-12, 1.0, 1e12]),
    st.sampled_from([1e-9, 1e-3, 1e3]),
    st.integers(0, 1000),
)
def test_whatever_comes_it_answers_within_bounds(cols, samples, scale, price, seed) -> None:
    known = seen(root_of(cols, 1), samples, seed)
    for target in (scale * weight(cols), torch.zeros(ROWS, cols)):
        found = damped(target, known, price)
        assert found.damping in DAMPINGS and 1 <= factor(found) <= 4
        assert found.gram is known.gram and found.halves is known.halves
        assert torch.isfinite(CODES.fit(target, found, price).dense()).all()


def test_silent_inputs_give_no_reason_for_anything() -> None:
    zero = torch.zeros(6, 6)
    assert factor(damped(weight(6), Importance(torch.ones(ROWS), gram=zero, halves=(zero, zero)), 1e-3)) == 1
    once = seen(root_of(6, 0), 50).gram
    found = damped(weight(6), Importance(torch.ones(ROWS), gram=once / 2, halves=(zero, once)), 1e-3)
    assert 1 < factor(found) <= 4


def test_rows_without_any_weight_stay_so() -> None:
    known = seen(root_of(16, 1), 20)
    importance = replace(known, rows=torch.zeros(ROWS))
    assert factor(damped(weight(16), importance, 1e-3)) == 0
    assert one_weight(weight(16), importance).fit(1e-3).error <= 1


def test_kernels_that_share_a_matrix_are_damped_too() -> None:
    few = replace(seen(root_of(9, 1), 5), kernel=(3, 3))
    found = damped(weight(36), few, 1e-3)
    assert found.kernel == (3, 3) and found.damping > 0.01 and factor(found) > 1.1


def test_a_weight_is_fitted_as_to_what_other_inputs_cost() -> None:
    root, target = root_of(48, 1), weight(48)
    truth = Importance(gram=root @ root.T)
    errors = []
    for importance in (seen(root, 30), replace(seen(root, 30), damping=1e-8, halves=None)):
        fitted = one_weight(target, importance).fit(1e-2)
        errors.append(truth.distortion(target - fitted.parts[0].dense()) + 1e-2 * fitted.parts[0].bits)
    assert errors[0] < 0.95 * errors[1]
