"""Random gradients at the outputs of a network, whose backward passes measure the cost of errors in its weights.

With probes v of E[v v^T] = H the mean of (v^T J E)^2 is the quadratic form E^T J^T H J E, the Gauss-Newton form for
the output Hessian H (Hutchinson's estimator): no labels are needed, and H can be chosen.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from waterfill.errors import BadInput
from waterfill.evaluation.divergence import are_logits, temperature
from waterfill.network.running.batches import any_never, never

Loss = Callable[[Tensor, Any], Tensor]
"""(outputs, batch) -> scalar, the mean over the rows of the outputs."""
AUTO, OUTPUTS, DIVERGENCE, FISHER = "auto", "outputs", "divergence", "fisher"
KINDS = (AUTO, OUTPUTS, DIVERGENCE, FISHER)
RELATIVE = (AUTO, OUTPUTS)
"""Kinds whose D is relative to the cost of losing all outputs, so that it does not depend on the outputs' unit."""
Draw = Callable[[], tuple[Tensor, Tensor]]
"""() -> the tensor to differentiate, and the gradient to start from."""
_SEQUENCE = 3  # dimensions of the outputs of a sequence: batch, places, classes
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


@dataclass
class Cost:
    """The cost of losing all outputs, summed over batches.

    importance: see `calibrate`. probes: for each batch. rows: output rows so far. energy: 2 D of losing them.
    """

    importance: "str | Loss"
    probes: int
    rows: int = 0
    energy: float = 0.0

    def draws(self, outputs: Tensor, batch: Any, generator: torch.Generator) -> Draw:
        """Count the outputs of a batch; what draws its probes."""
        rows = outputs.numel() // outputs.shape[-1] if outputs.ndim > 1 else outputs.numel()
        self.rows += rows
        draw = _draws(self.importance, outputs, (batch, rows), generator)

        def counted() -> tuple[Tensor, Tensor]:
            what, at = draw()
            self.energy += _energy(outputs, at) if self.importance in RELATIVE else 0.0
            return what, at

        return counted

    @property
    def unit(self) -> float:
        """The unit of D: what the D of one output row is divided by."""
        mean = self.energy / (self.probes * max(1, self.rows))
        return mean if self.importance in RELATIVE and 0 < mean < math.inf else 1.0


def _draws(importance: "str | Loss", outputs: Tensor, batch: tuple[Any, int], generator: torch.Generator) -> Draw:
    tempered_outputs = importance == DIVERGENCE or (importance == AUTO and outputs.ndim == _SEQUENCE)
    if tempered_outputs and are_logits(outputs):
        softened = Softened.of(outputs)
        return lambda: (outputs, softened.probe(generator))
    if importance in (AUTO, OUTPUTS, DIVERGENCE):
        return lambda: (outputs, signs(outputs, generator))
    if importance == FISHER:
        return lambda: (outputs, _of_labels(outputs, generator))
    assert callable(importance)
    return lambda: _of_loss(importance, outputs, *batch)


def _of_labels(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """The gradient of the log likelihood of labels drawn from the softmax over the last dimension. Raises BadInput."""
    if outputs.ndim == 0:
        raise BadInput('"fisher" takes the outputs for logits, classes last; this model returns a single number')
    probabilities = outputs.detach().float().softmax(-1)
    labels = torch.multinomial(probabilities.reshape(-1, probabilities.shape[-1]).cpu(), 1, generator=generator)
    drawn = F.one_hot(labels.reshape(outputs.shape[:-1]), outputs.shape[-1]).to(probabilities)
    return (probabilities - drawn).to(outputs)


def _of_loss(loss_of: Loss, outputs: Tensor, batch: Any, rows: int) -> tuple[Tensor, Tensor]:
    """A loss of the user's, and the gradient to start from. Raises BadInput."""
    try:
        loss = loss_of(outputs, batch)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise BadInput(f"the loss given as importance= failed on (outputs, batch): {said}") from error
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not bool(torch.isfinite(loss).all()):
        raise BadInput("the loss given as importance= did not return one finite number")
    return loss, torch.full_like(loss, float(rows))


def _energy(outputs: Tensor, probe: Tensor) -> float:
    """The squared inner product of outputs and a probe, summed over the rows; for signs its expectation."""
    width = outputs.shape[-1] if outputs.ndim else 1
    values, factors = outputs.detach().reshape(-1, width), probe.reshape(-1, width)
    values = values.masked_fill(never(values), 0.0) if any_never(values) else values
    rows = max(1, _ENTRIES_AT_A_TIME // max(1, width))
    random_signs = True
    squares = products = 0.0
    for some, factor in zip(values.split(rows), factors.split(rows), strict=True):
        wide = some.double()
        random_signs = random_signs and bool(((factor.abs() == 1) | (factor == 0)).all())
        squares += float(wide.square().sum()) if random_signs else 0.0
        products += float((wide * factor.double()).sum(1).square().sum())
    return squares if random_signs else products
