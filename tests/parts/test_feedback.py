"""Successive quantization: every code is the nearest to a target that has taken over all errors before it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from tests.support.feedback_cases import entries, searches

from waterfill.coding import native
from waterfill.coding.model.density_model import DensityModel
from waterfill.importance import Importance
from waterfill.parts import Quantize
from waterfill.parts.quantizer import candidates, feedback
from waterfill.parts.quantizer.code_choice import Chooser
from waterfill.parts.quantizer.feedback import BLOCK, Feedback, feed_back


def factor(n: int) -> tuple[Importance, np.ndarray]:
    inputs = torch.randn(3 * n, n) @ (torch.eye(n) + torch.randn(n, n) / n**0.5)
    importance = Importance(gram=inputs.T @ inputs / len(inputs))
    return importance, importance.lower


def rounding(rows: int, cols: int) -> Chooser:
    """Distortion is so dear that the nearest code is chosen."""
    plain = DensityModel(3, 50, None, None, np.zeros(1, np.int64), None)
    return Chooser(plain, (), (np.full(rows, 1e6), np.ones(cols)))


def fed_back(x: np.ndarray, lower: np.ndarray, chooser: Chooser) -> np.ndarray:
    """Codes of x [n, channels, rows]."""
    return feed_back(x.copy(), Feedback(lower, np.ones(len(x))), chooser.rule(slice(0, x.shape[2]), len(x)))


@pytest.mark.parametrize("n", [1, 2, 9, BLOCK, BLOCK + 1, 3 * BLOCK - 5])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_code_is_nearest_to_what_errors_before_ask_for(n, channels):
    _, lower = factor(n)
    x = entries(0, n, channels, 5)
    codes = fed_back(x, lower, rounding(5, n * channels))
    left = np.tensordot(lower / np.diag(lower)[:, None], x - codes, axes=1)  # target - code of every visit
    assert np.abs(left).max() < 0.501
    assert n < 9 or (codes != np.rint(x)).any()


def test_feedback_beats_plain_rounding():
    importance, lower = factor(80)
    x = entries(1, 80, 1, 40)
    codes = fed_back(x, lower, rounding(40, 80))
    fed, plain = (importance.distortion(torch.from_numpy(x - z)[:, 0].T) for z in (codes, np.rint(x)))
    assert fed < 0.9 * plain


def test_without_correlation_it_is_plain_rounding():
    x = entries(2, 100, 2, 7)
    codes = fed_back(x, np.diag(np.arange(1.0, 101.0)), rounding(7, 200))
    assert (codes == np.rint(x)).all()


def test_on_return_the_entries_are_errors_and_steps_scale_what_is_fed_back():
    _, lower = factor(30)
    x, steps = entries(3, 30, 1, 6), np.linspace(0.5, 2, 30)
    errors = x.copy()
    codes = feed_back(errors, Feedback(lower, steps), rounding(6, 30).rule(slice(0, 6), 30))
    assert np.array_equal(errors, x - codes.astype(np.float32))
    assert np.array_equal(codes, fed_back(x, lower * steps, rounding(6, 30)))


@pytest.mark.parametrize("rough", [False, True])
def test_products_in_bfloat16_hardly_cost_anything(rough):
    importance, lower = factor(600)
    x = entries(4, 600, 1, 30)
    chooser, feedback = rounding(30, 600), Feedback(lower, np.ones(600), rough=rough)
    codes = feed_back(x.copy(), feedback, chooser.rule(slice(0, 30), 600))
    exact = fed_back(x, lower.astype(np.float64), chooser)
    fed, wanted = (importance.distortion(torch.from_numpy(x - z)[:, 0].T) for z in (codes, exact))
    assert fed == pytest.approx(wanted, rel=0.03)


@given(searches())
@settings(max_examples=30)
def test_compiled_feedback_equals_the_numpy_form(search):
    if native.core is None:
        pytest.skip("the compiled core is not installed")
    lower = np.tril(np.random.default_rng(0).normal(size=(search.visits, search.visits)) * 0.3, -1)
    lower += np.diag(np.linspace(0.5, 1.5, search.visits))
    compiled = fed_back(search.x, lower, search.chooser)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "core", None)
        plain = fed_back(search.x, lower, search.chooser)
    assert (compiled != plain).mean() <= 0.001 or differ_at_a_tie(compiled, plain, lower)


def differ_at_a_tie(compiled: np.ndarray, plain: np.ndarray, lower: np.ndarray) -> bool:
    """Rows with different codes are few: a tie in one row moves only what follows in it."""
    return (compiled != plain).any((0, 1)).mean() <= 0.1


@pytest.mark.parametrize(("noise", "rough"), [(1.0, True), (1e-3, False)])
def test_errors_that_nearly_cancel_are_multiplied_in_float32(noise, rough, monkeypatch):
    """Inputs that few directions explain let errors be large where they cost nothing: rounding would show there."""
    asked = []
    monkeypatch.setattr(feedback, "quick_products", lambda: asked.append(True) or False)
    monkeypatch.setattr(candidates, "LARGE", 1 << 16)
    inputs = torch.randn(1000, 8) @ torch.randn(8, 300) + noise * torch.randn(1000, 300)
    importance = Importance(gram=inputs.T @ inputs / len(inputs))
    target = torch.randn(300, 300)
    Quantize().fit(target, importance, 1e-6 * importance.distortion(target) / target.numel())
    assert bool(asked) == rough
