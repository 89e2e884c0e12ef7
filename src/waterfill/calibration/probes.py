"""Random gradients at the outputs of a network, whose backward passes measure the cost of errors in its weights.

With probes v of E[v v^T] = H the mean of (v^T J E)^2 is the quadratic form E^T J^T H J E, the Gauss-Newton form for
the output Hessian H (Hutchinson's estimator): no labels are needed, and H can be chosen.
"""

import math

import torch
from torch import Tensor

from waterfill.evaluation.divergence import _temperature
from waterfill.network.running.batches import never

_SHIFT_OF_MEAN = 0.1  # of the mean over classes


def signs(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """H = I, the squared error: random signs in the shape of the outputs, and 0 at masked outputs (`never`)."""
    drawn = torch.randint(0, 2, outputs.shape, dtype=torch.int64, device="cpu", generator=generator)
    return (drawn.to(outputs) * 2 - 1).masked_fill(never(outputs), 0.0)


def tempered(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """Probe of the KL divergence of temperature-scaled probabilities, for outputs [..., classes] that are logits.

    To second order KL(p || q) is half the form diag(p) - p p^T in the logits; diag(r) v - p (r^T v) with r = sqrt(p)
    and random signs v is a probe of it. Where the network is confident that nearly vanishes, though the large errors of
    few bits would still change the answer: so p = softmax(logits / T) at a temperature T that gives an entropy of at
    least `ENTROPY`. Outputs need not be logits: a shift of all classes, which probabilities do not show, costs a tenth
    of other changes.
    """
    hidden = never(outputs)
    logits = outputs.detach().float().masked_fill(hidden, -math.inf)
    logits = logits.masked_fill(hidden.all(-1, keepdim=True), 0.0)
    probabilities = (logits / _temperature(logits)).softmax(-1)
    root = probabilities.sqrt()
    v = signs(logits, generator)
    probe = root * v - probabilities * (root * v).sum(-1, keepdim=True)
    energy = 1 - probabilities.square().sum(-1, keepdim=True)
    probe += (_SHIFT_OF_MEAN * energy).sqrt() / logits.shape[-1] * signs(energy, generator)
    return probe.to(outputs).masked_fill(hidden, 0.0)
