"""Successive quantization: what its choices leave adds up to the distortion, and each sees the errors before it."""

import numpy as np
import pytest
import torch

from waterfill.importance import Importance
from waterfill.parts.feedback import BLOCK, feed_back


def factor(n: int) -> tuple[Importance, np.ndarray]:
    inputs = torch.randn(3 * n, n) @ (torch.eye(n) + torch.randn(n, n) / n**0.5)
    importance = Importance(gram=inputs.T @ inputs / len(inputs))
    return importance, importance.lower


def rounding(codes: np.ndarray, n: int, seen: dict[int, np.ndarray] | None = None):
    """A choice that rounds, keeps its codes in `codes` [rows, cols] and its targets in `seen`."""

    def choose(i: int, targets: np.ndarray) -> np.ndarray:
        codes[:, i::n] = np.rint(targets)
        if seen is not None:
            seen[i] = targets.copy()
        return codes[:, i::n]

    return choose


@pytest.mark.parametrize("n", [1, 2, 9, BLOCK, BLOCK + 1, 3 * BLOCK - 5])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_each_choice_leaves_adds_up_to_the_distortion(n, channels):
    importance, lower = factor(n)
    x = 3 * np.random.default_rng(0).normal(size=(5, n * channels)).astype(np.float32)
    codes, seen = np.zeros_like(x), {}
    feed_back(x, lower, rounding(codes, n, seen))
    assert sorted(seen) == list(range(n))
    left = sum(lower[i, i] ** 2 * float(((seen[i] - codes[:, i::n]) ** 2).sum()) for i in range(n))
    error = torch.from_numpy(x - codes).reshape(-1, n)
    assert 0.5 * left == pytest.approx(importance.distortion(error), rel=1e-3)


def test_feedback_beats_plain_rounding():
    importance, lower = factor(80)
    x = 3 * np.random.default_rng(1).normal(size=(40, 80)).astype(np.float32)
    codes = np.zeros_like(x)
    feed_back(x, lower, rounding(codes, 80))
    fed, plain = (importance.distortion(torch.from_numpy(x - z)) for z in (codes, np.rint(x)))
    assert fed < 0.9 * plain


def test_without_correlation_it_is_plain_rounding():
    x = 3 * np.random.default_rng(2).normal(size=(7, 100)).astype(np.float32)
    codes = np.zeros_like(x)
    feed_back(x, np.diag(np.arange(1.0, 101.0)), rounding(codes, 100))
    assert (codes == np.rint(x)).all()
