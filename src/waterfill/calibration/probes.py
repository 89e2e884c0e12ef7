"""Random gradients at the outputs of a network, whose backward passes measure the cost of errors in its weights.

With probes v of E[v v^T] = H the mean of (v^T J E)^2 is the quadratic form E^T J^T H J E, the Gauss-Newton form for
the output Hessian H (Hutchinson's estimator): no labels are needed, and H can be chosen.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from waterfill.evaluation.divergence import temperature
from waterfill.network.running.batches import any_never, never

_SHIFT_OF_MEAN = 0.1  # of the mean over classes
_ENTRIES_AT_A_TIME = 1 << 18


def signs(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """H = I, the squared error: random signs in the shape of the outputs, and 0 at masked outputs (`never`)."""
    probe = _drawn(outputs, generator).to(outputs).mul_(2).sub_(1)
    return probe.masked_fill_(never(outputs), 0.0) if any_never(outputs) else probe


def tempered(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """Probe of the KL divergence of temperature-scaled probabilities, for outputs [..., classes] that are logits."""
    return Softened.of(outputs).probe(generator)


@dataclass(frozen=True, eq=False)
class Softened:
    """The temperature-scaled probabilities p of outputs, of which any number of probes are drawn.

    To second order KL(p || q) is half the form diag(p) - p p^T in the logits; diag(r) v - p (r^T v) with r = sqrt(p)
    and random signs v is a probe of it. Where the network is confident that nearly vanishes, though the large errors of
    few bits would still change the answer: so p = softmax(logits / T) at a temperature T that gives an entropy of at
    least `ENTROPY`. Outputs need not be logits: a shift of all classes, which probabilities do not show, costs a tenth
    of other changes.

    outputs: [..., classes]. probabilities: the same shape, float32. hidden: the masked outputs, None for none.
    """

    outputs: Tensor
    probabilities: Tensor
    hidden: Tensor | None

    @classmethod
    def of(cls, outputs: Tensor) -> Self:
        """Of the outputs of a network that are logits, classes last."""
        logits = outputs.detach().float()
        hidden = never(logits) if any_never(logits) else None
        if hidden is not None:
            logits = logits.masked_fill(hidden, -math.inf).masked_fill_(hidden.all(-1, keepdim=True), 0.0)
        probabilities = torch.empty_like(logits)
        for some, result in zip(_pieces(logits), _pieces(probabilities), strict=True):
            torch.softmax(some / temperature(some), -1, out=result)
        return cls(outputs.detach(), probabilities, hidden)

    def probe(self, generator: torch.Generator) -> Tensor:
        """A random gradient at the outputs, in their type."""
        drawn = _drawn(self.probabilities, generator)
        shifts = signs(self.probabilities[..., :1], generator).reshape(-1, 1)
        probe = torch.empty_like(self.probabilities)
        at = 0
        for p, v, result in zip(_pieces(self.probabilities), _pieces(drawn), _pieces(probe), strict=True):
            torch.mul(p.sqrt(), v.to(p).mul_(2).sub_(1), out=result)
            energy = 1 - p.square().sum(-1, keepdim=True)
            shift = (_SHIFT_OF_MEAN * energy).sqrt() / p.shape[-1] * shifts[at : at + len(p)]
            result.sub_(p * result.sum(-1, keepdim=True) - shift)
            at += len(p)
        probe = probe.to(self.outputs)
        return probe if self.hidden is None else probe.masked_fill_(self.hidden, 0.0)


def _drawn(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random bits, int8."""
    return torch.randint(0, 2, like.shape, dtype=torch.int8, device="cpu", generator=generator).to(like.device)


def _pieces(values: Tensor) -> tuple[Tensor, ...]:
    """Views of some rows of contiguous values [..., classes] each: what is computed from them stays in the cache."""
    flat = values.reshape(-1, values.shape[-1])
    return flat.split(max(1, _ENTRIES_AT_A_TIME // max(1, flat.shape[1])))
