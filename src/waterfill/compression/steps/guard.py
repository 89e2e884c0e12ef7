"""Decides whether a correction is kept, by the outputs of the reference on held-out inputs."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.evaluation.metrics import centered, divergences, relative, rows_of, squared_errors
from waterfill.network.running.batches import few_enough
from waterfill.network.running.forward import Forward, as_deployed, call

_ENTRIES = 1 << 26  # of the outputs that are compared, which are kept in memory


class Guard:
    """The distance of a network from the reference on held-out inputs."""

    def __init__(self, reference: nn.Module, held: list[Any], forward: Forward | None, logits: bool) -> None:
        self.model, self.forward, self.logits = reference, forward, logits
        with as_deployed(reference):
            self._first = call(reference, held[0], forward)
            self.held = self.few_enough(held)
            self._known = [call(reference, batch, forward).clone() for batch in self.held]
        self.logits = logits and all(outputs.ndim > 0 and outputs.shape[-1] > 1 for outputs in self._known)

    def few_enough(self, batches: list[Any], times: int = 1) -> list[Any]:
        """Some of the batches, so that there are not too many outputs. times: how many times as many as are compared
        may be run."""
        return few_enough(batches, self._first, times * _ENTRIES)

    @property
    def name(self) -> str:
        return "divergence" if self.logits else "output error"

    def measure(self, model: nn.Module) -> "Score":
        """Run a network. Raises BadInput for outputs that are not finite."""
        nats, errors, energy = [], [], 0.0
        with as_deployed(model, self.model):
            for batch, reference in zip(self.held, self._known, strict=True):
                actual, expected = rows_of(call(model, batch, self.forward), reference)
                if self.logits:  # a shift of all classes has no effect
                    actual, expected = centered(actual), centered(expected)
                errors.append(squared_errors(actual, expected))
                energy += float(squared_errors(torch.zeros_like(expected), expected).sum())
                if self.logits:
                    nats.append(divergences(actual, expected))
        error = torch.cat(errors).cpu()
        value = float(torch.cat(nats).mean()) if nats else relative(float(error.sum()), energy)
        return Score(max(0.0, value), torch.cat(nats).cpu() if nats else error, error)


@dataclass(frozen=True)
class Score:
    """value: divergence in nats a row, or relative output error. rows: that of every row (its square). errors: squared
    output errors of the rows."""

    value: float
    rows: Tensor
    errors: Tensor

    def below(self, other: "Score") -> bool:
        """Whether both the measure and the squared output error fell, one of them by more than a standard error.

        The output error counts too because the divergence of a confident network is near zero on most inputs and
        depends on a few rows. The standard error is that of the rows' differences.
        """
        falls = (other.rows - self.rows, other.errors - self.errors)
        if any(not float(fall.sum()) > 0 for fall in falls):
            return False
        return any(len(f) < 2 or float(f.mean()) > float(f.std()) / math.sqrt(len(f)) for f in falls)
