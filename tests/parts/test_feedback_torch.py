"""The torch form of feedback, for graphics cards: here on the CPU, against the compiled core."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from tests.support.feedback_cases import entries, searches

from waterfill import Quantize
from waterfill.coding.model.density_model import DensityModel
from waterfill.errors import BadInput
from waterfill.importance import Importance
from waterfill.parts.quantizer import candidates, feedback_torch
from waterfill.parts.quantizer.candidates import Choices, best_candidate
from waterfill.parts.quantizer.code_choice import Chooser
from waterfill.parts.quantizer.feedback import Feedback, feed_back


@given(searches())
@settings(max_examples=25)
def test_codes_are_those_of_the_compiled_core(search):
    random = np.random.default_rng(0)  # a diagonal factor adds nothing up, so that arithmetic is the same
    feedback = Feedback(np.diag(random.random(search.visits) + 0.5), random.random(search.visits) + 0.5)
    rule = search.chooser.rule(slice(0, search.x.shape[2]), search.visits)
    wanted = feed_back(search.x.copy(), feedback, rule)
    assert np.array_equal(feedback_torch.feed_back(torch.from_numpy(search.x), feedback, rule).numpy(), wanted)


@pytest.mark.parametrize(
    ("states", "kernel"),
    [(0, (3, 3)), (8, ()), *(pytest.param(*both, marks=pytest.mark.slow) for both in ((0, ()), (8, (3, 3))))],
)
def test_a_candidate_costs_what_one_by_the_compiled_core_does(states, kernel, monkeypatch):
    monkeypatch.setattr(candidates, "feed_back", None)  # it is not used
    cols = 144
    inputs = torch.randn(2 * cols, cols) @ (torch.eye(cols) + torch.randn(cols, cols) / cols**0.5)
    importance = Importance(gram=inputs.T @ inputs / len(inputs), kernel=kernel)
    target = torch.randn(30, cols)
    price = 0.03 * importance.distortion(target) / target.numel()

    def cost(device: str) -> float:
        candidate = best_candidate(target, importance, price, Choices(states, device))
        return importance.distortion(candidate.error(target)) + price * candidate.bits(1.0)

    other = cost("cpu:0")  # by name another device than "cpu", and the one that there is
    monkeypatch.undo()
    assert other == pytest.approx(cost("cpu"), rel=3e-3)


def test_many_chunks_and_lanes_of_a_trellis(monkeypatch):
    monkeypatch.setattr("waterfill.coding.chunking.CHUNK", 1 << 10)
    random = np.random.default_rng(0)
    rows, channels, positions = 50, 8, 9
    model = DensityModel(2, 50, random.integers(-6, 7, rows), None, np.zeros(positions, int), None)
    rule = Chooser(model, (3, 3), (np.ones(rows), np.ones(channels * positions)), 8).rule(slice(0, rows), positions)
    x, feedback = entries(0, positions, channels, rows), Feedback(np.eye(positions), np.ones(positions))
    assert rule.chunk < rows and rows % rule.chunk
    codes = feedback_torch.feed_back(torch.from_numpy(x), feedback, rule).numpy()
    assert np.array_equal(codes, feed_back(x.copy(), feedback, rule))


def test_a_target_without_values_is_refused():
    with pytest.raises(BadInput, match="meta device"):
        Quantize().fit(torch.zeros(4, 5, device="meta"), Importance(), 1.0)
