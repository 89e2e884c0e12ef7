"""The KL divergence of temperature-scaled probabilities."""

import math

import torch
from torch import Tensor

from waterfill.evaluation.metrics import divergences, rows_of, squared_errors

ENTROPY = 2.0
"""The least entropy of temperature-scaled probabilities, nats."""
_SHARE_OF_UNIFORM_ENTROPY = 0.8  # of the entropy of uniform probabilities, where that is less than ENTROPY
_HIGHEST_TEMPERATURE = 1e4
_TEMPERATURE_HALVINGS = 20


def are_logits(outputs: Tensor) -> bool:
    """Whether outputs can be logits, classes last: a vector for each input or each place of a sequence."""
    return outputs.ndim in (2, 3) and outputs.shape[-1] > 1


def distance(outputs: Tensor, reference: Tensor) -> float:
    """KL(reference || outputs) at the temperature of the reference, nats, mean of the rows.

    For small errors it is the form that `calibration.probes.tempered` estimates. Where outputs cannot be logits: their
    mean squared error.
    """
    actual, expected = rows_of(outputs, reference)
    if not are_logits(reference):
        return float(squared_errors(actual, expected).sum()) / max(1, actual.numel())
    expected, actual = expected.float(), actual.float()
    temperature = _temperature(expected)
    return float(divergences(actual / temperature, expected / temperature).mean())


def _temperature(logits: Tensor) -> Tensor:
    """The least temperature T [..., 1], at least 1, at which softmax(logits / T) has the entropy that is required.

    Masked classes, of logits minus infinity, do not count.
    """
    possible = logits.isfinite().sum(-1, keepdim=True).clamp_min(1)
    target = (_SHARE_OF_UNIFORM_ENTROPY * possible.to(logits).log()).clamp_max(ENTROPY)
    low = torch.zeros_like(logits[..., :1])  # logarithms of T
    high = torch.full_like(low, math.log(_HIGHEST_TEMPERATURE))
    for _ in range(_TEMPERATURE_HALVINGS):
        middle = (low + high) / 2
        below = _entropy(logits / middle.exp()) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(_entropy(logits) < target, high.exp(), 1.0)


def _entropy(logits: Tensor) -> Tensor:
    """Nats of softmax(logits), [..., 1]."""
    return torch.special.entr(logits.softmax(-1)).sum(-1, keepdim=True)
