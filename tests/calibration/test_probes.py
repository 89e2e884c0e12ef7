"""Probes of the outputs: what form they are of, where they are used, and the distance that goes with them."""

import math

import pytest
import torch
from torch import nn

import waterfill
from waterfill.calibration.probes import signs, tempered
from waterfill.evaluation.divergence import ENTROPY, are_logits, distance


def moment(logits: torch.Tensor, count: int = 40_000) -> torch.Tensor:
    """E[v v^T] of tempered probes at one row of logits."""
    found = tempered(logits.expand(count, -1), torch.Generator().manual_seed(0))
    return found.T @ found / count


def form(probabilities: torch.Tensor) -> torch.Tensor:
    """diag(p) - p p^T, and a tenth of its mean over classes for a shift of all."""
    plain = torch.diag(probabilities) - torch.outer(probabilities, probabilities)
    return plain + 0.1 * plain.trace() / len(probabilities) ** 2


def entropy(probabilities: torch.Tensor) -> float:
    return float(-(probabilities * probabilities.log()).sum())


def test_where_the_network_is_unsure_they_are_of_the_divergence():
    logits = torch.randn(24, generator=torch.Generator().manual_seed(1))
    assert entropy(logits.softmax(0)) > ENTROPY
    wanted = form(logits.softmax(0))
    assert float((moment(logits) - wanted).norm() / wanted.norm()) < 0.05


def test_where_it_is_sure_probabilities_are_tempered_to_the_entropy():
    logits = 30 * torch.randn(24, generator=torch.Generator().manual_seed(1))
    assert entropy(logits.softmax(0).clamp_min(1e-30)) < 0.1
    low, high = 1.0, 1e3
    for _ in range(60):
        low, high = (m, high) if entropy((logits / (m := math.sqrt(low * high))).softmax(0)) < ENTROPY else (low, m)
    wanted = form((logits / high).softmax(0))
    assert float((moment(logits) - wanted).norm() / wanted.norm()) < 0.05


def test_two_classes_are_tempered_too():
    assert moment(torch.tensor([40.0, 0.0])).trace() > 0.2  # of at most a half: without, it is 1e-17


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5)])
def test_signs_and_tempered_have_the_shape_of_the_outputs(shape):
    outputs = torch.randn(shape)
    assert signs(outputs, torch.Generator()).shape == tempered(outputs, torch.Generator()).shape == shape
    assert set(signs(outputs, torch.Generator()).unique().tolist()) == {-1.0, 1.0}


def test_images_and_single_numbers_are_no_logits():
    assert (
        not are_logits(torch.zeros(2, 3, 8, 8)) and not are_logits(torch.zeros(7)) and not are_logits(torch.zeros(7, 1))
    )


class Sequence(nn.Module):
    """Logits for every place of a sequence, or for the sequence."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pooled = pooled
        self.inner, self.outer = nn.Linear(6, 12), nn.Linear(12, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = 3 * self.outer(torch.tanh(self.inner(x)))
        return logits.mean(1) if self.pooled else logits


@pytest.mark.parametrize(("pooled", "same"), [(False, "divergence"), (True, "outputs")])
def test_by_itself_the_divergence_counts_for_sequences_alone(pooled, same):
    batches = [torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(2))]
    found = {
        kind: waterfill.calibrate(Sequence(pooled), batches, importance=kind)
        for kind in ("auto", "outputs", "divergence")
    }
    for name in ("inner.weight", "outer.weight"):
        auto, other = (found[kind][name].rows * found[kind].unit for kind in ("auto", same))
        assert torch.allclose(auto, other, rtol=1e-9)
        assert not torch.allclose(found["outputs"][name].rows, found["divergence"][name].rows, rtol=0.1)


def test_the_distance_is_that_of_the_forms_for_small_errors():
    logits = torch.randn(50, 24, generator=torch.Generator().manual_seed(3))
    error = 1e-2 * torch.randn(50, 24, generator=torch.Generator().manual_seed(4))
    probabilities = logits.softmax(1)
    forms = ((probabilities * error**2).sum(1) - (probabilities * error).sum(1) ** 2).mean() / 2
    assert distance(logits + error, logits) == pytest.approx(float(forms), rel=0.05)
    assert distance(logits + 7, logits) == pytest.approx(0, abs=1e-6)


def test_of_other_outputs_it_is_the_squared_error():
    images = torch.zeros(2, 3, 4, 4)
    assert distance(images + 2, images) == pytest.approx(4)
