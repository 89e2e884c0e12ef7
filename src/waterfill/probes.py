"""Random gradients at the outputs of a network, whose backward passes tell what errors in its weights cost.

With probes v of E[v v^T] = H the mean of (v^T J E)^2 is the quadratic form E^T J^T H J E: no labels are needed, and H
is a matter of choice.
"""

import math

import torch
from torch import Tensor

from waterfill.scores import divergences

ENTROPY = 2.0  # nats
_SHARE = 0.8  # of the entropy of even chances, where that is less
_SHIFT = 0.1  # of the mean over classes
_HOTTEST = 1e4
_HALVINGS = 20


def signs(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """H = I, the squared error: random signs in the shape of the outputs."""
    return torch.randint(0, 2, outputs.shape, dtype=torch.int64, device="cpu", generator=generator).to(outputs) * 2 - 1


def softened(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """H of the divergence of softened chances, for outputs [..., classes] that are logits.

    To second order KL(p || q) is half the form diag(p) - p p^T in the logits; diag(r) v - p (r^T v) with r = sqrt(p)
    and random signs v is a probe of it. Where the network is sure of its answer that nearly vanishes, though errors as
    large as few bits make would still change it: so p = softmax(logits / T) with an entropy of `ENTROPY` at the least.
    Outputs need not be logits: a shift of all, which chances do not show, costs a tenth of what others do.
    """
    logits = outputs.detach().float()
    chances = (logits / _temperature(logits)).softmax(-1)
    root = chances.sqrt()
    v = signs(logits, generator)
    probe = root * v - chances * (root * v).sum(-1, keepdim=True)
    energy = 1 - chances.square().sum(-1, keepdim=True)
    probe += (_SHIFT * energy).sqrt() / logits.shape[-1] * signs(energy, generator)
    return probe.to(outputs)


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
