"""The divergence of probabilities at a temperature."""

import math

import torch
from torch import Tensor

from waterfill.evaluation.metrics import divergences

ENTROPY = 2.0  # nats


_SHARE = 0.8  # of the entropy of even chances, where that is less


_HOTTEST = 1e4


_HALVINGS = 20


def are_logits(outputs: Tensor) -> bool:
    """Whether outputs can be taken for logits, classes last: a vector for each input or each place of a sequence."""
    return outputs.ndim in (2, 3) and outputs.shape[-1] > 1


def distance(outputs: Tensor, reference: Tensor) -> float:
    """Whole errors as `softened` weighs small ones: nats of KL(reference || outputs), both softened, a row on average.

    Where outputs cannot be logits, their mean squared error.
    """
    if not are_logits(reference):
        return float((outputs.double() - reference.double()).square().mean())
    wanted, found = (rows.reshape(-1, reference.shape[-1]).float() for rows in (reference, outputs))
    heat = _temperature(wanted)
    return float(divergences(found / heat, wanted / heat).mean())


def _temperature(logits: Tensor) -> Tensor:
    """The least T [..., 1], 1 or more, at which softmax(logits / T) has the entropy wanted."""
    wanted = min(ENTROPY, _SHARE * math.log(logits.shape[-1]))
    low = torch.zeros_like(logits[..., :1])  # logarithms of T
    high = torch.full_like(low, math.log(_HOTTEST))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        short = _entropy(logits / middle.exp()) < wanted
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return torch.where(_entropy(logits) < wanted, high.exp(), 1.0)


def _entropy(logits: Tensor) -> Tensor:
    """Nats of softmax(logits), [..., 1]."""
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1, keepdim=True)
