"""The divergence of probabilities at a temperature."""

import math

import torch
from torch import Tensor

from waterfill.evaluation.metrics import divergences, rows_of, squared_errors

ENTROPY = 2.0  # nats


_SHARE_OF_UNIFORM_ENTROPY = 0.8  # of the entropy of uniform probabilities, where that is less


_HIGHEST_TEMPERATURE = 1e4


_TEMPERATURE_HALVINGS = 20


def are_logits(outputs: Tensor) -> bool:
    """Whether outputs can be taken for logits, classes last: a vector for each input or each place of a sequence."""
    return outputs.ndim in (2, 3) and outputs.shape[-1] > 1


def distance(outputs: Tensor, reference: Tensor) -> float:
    """Whole errors as `softened` weighs small ones: nats of KL(reference || outputs), both softened, a row on average.

    Where outputs cannot be logits, their mean squared error.
    """
    found, wanted = rows_of(outputs, reference)
    if not are_logits(reference):
        return float(squared_errors(found, wanted).sum()) / max(1, found.numel())
    wanted, found = wanted.float(), found.float()
    temperature = _temperature(wanted)
    return float(divergences(found / temperature, wanted / temperature).mean())


def _temperature(logits: Tensor) -> Tensor:
    """The least T [..., 1], 1 or more, at which softmax(logits / T) has the entropy wanted.

    Classes that can never be, of logits minus infinity, are none.
    """
    possible = logits.isfinite().sum(-1, keepdim=True).clamp_min(1)
    wanted = (_SHARE_OF_UNIFORM_ENTROPY * possible.to(logits).log()).clamp_max(ENTROPY)
    low = torch.zeros_like(logits[..., :1])  # logarithms of T
    high = torch.full_like(low, math.log(_HIGHEST_TEMPERATURE))
    for _ in range(_TEMPERATURE_HALVINGS):
        middle = (low + high) / 2
        short = _entropy(logits / middle.exp()) < wanted
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return torch.where(_entropy(logits) < wanted, high.exp(), 1.0)


def _entropy(logits: Tensor) -> Tensor:
    """Nats of softmax(logits), [..., 1]."""
    return torch.special.entr(logits.softmax(-1)).sum(-1, keepdim=True)
