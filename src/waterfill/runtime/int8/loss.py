"""What rounding inputs costs: how far the outputs of a network are from those that it had before."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.evaluation.divergence import are_logits
from waterfill.evaluation.metrics import Distance
from waterfill.network.running.batches import few_enough, samples_in
from waterfill.network.running.forward import Forward, as_deployed, call

_ENTRIES = 1 << 26
"""Of outputs that are compared."""
LOSS = "_waterfill_loss"
"""The attribute of a network with the loss of its 8-bit inputs."""


@dataclass(frozen=True)
class Loss:
    """value: nats, mean of the output rows, or a relative error. logits: which of the two. inputs: on how many.
    layers: how many round their inputs, and of how many. limit: that the caller gave."""

    value: float
    logits: bool
    inputs: int
    layers: tuple[int, int]
    limit: float

    @property
    def words(self) -> str:
        what = f"divergence {self.value:.2g} nats" if self.logits else f"output error {self.value:.2g}"
        return f"{what} on {self.inputs} inputs held out; the limit is {self.limit:.2g}"


class Judge:
    """The outputs of a network before, on inputs that are held out."""

    def __init__(self, model: nn.Module, batches: Sequence[Any], forward: Forward | None, logits: bool | None) -> None:
        self._forward = forward
        with as_deployed(model):
            first = call(model, batches[0], forward)
            self._batches = few_enough(batches, first, _ENTRIES)
            self._known = [call(model, batch, forward).clone() for batch in self._batches]
        self.logits = are_logits(first) if logits is None else logits
        self.inputs = sum(max(1, samples_in(batch)) for batch in self._batches)

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """The divergence from the outputs before, nats, mean of the rows, as `evaluate` gives it; for outputs that are
        no logits the norm of the error relative to theirs."""
        distance = Distance()
        with as_deployed(model):
            for batch, known in zip(self._batches, self._known, strict=True):
                distance.add(self._outputs(model, batch), known, self.logits)
        return distance.divergence if self.logits else distance.relative

    def _outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return call(model, batch, self._forward)
