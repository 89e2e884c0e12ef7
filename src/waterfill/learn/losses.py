"""What a network is to learn where there are no labels: to say what another one says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from waterfill.errors import BadInput
from waterfill.evaluation.divergence import are_logits
from waterfill.network.running.batches import tensor_in, tensors_in

_TINY = 1e-12
_ONE_ROW, _SEQUENCE = 4.0, 1.0  # temperatures of logits
_ROWS = 2  # dimensions of logits with a row for each input


@dataclass(frozen=True)
class Imitation:
    """The distance of a network's outputs from those of a reference on the same inputs; no labels are needed.

    Logits (classes last, of each input or of each place in a sequence) by the divergence of probabilities at a
    temperature, T^2 KL(reference || outputs), nats a row (arXiv 1503.02531); all other outputs by their squared error
    relative to their variance. Of a mapping with `logits` these count, of any other, and of a tuple, the sum over the
    real tensors in it that have a row for each input, as the first one has: what a recurrent network remembers, and
    what is nested deeper, such as a cache, is no output.

    Args:
        temperature: T; the higher, the more what is said of unlikely classes counts. None: 4 where each input has one
            row, and 1 where each place of a sequence has: of language models it is the likely tokens that count.
        logits: whether outputs are logits; None: wherever they can be.
    """

    temperature: float | None = None
    logits: bool | None = None

    def __call__(self, outputs: Any, reference: Any) -> Tensor:
        """A scalar. Raises BadInput for outputs that cannot be compared with the reference's."""
        found, expected = _compared(outputs), _compared(reference)
        shapes = [[list(value.shape) for value in values] for values in (found, expected)]
        if shapes[0] != shapes[1] or not expected:
            raise BadInput(
                f"outputs of shapes {shapes[0]} cannot be compared with the reference's {shapes[1]}; "
                "give a loss of your own"
            )
        pairs = zip(found, expected, strict=True)
        return torch.stack([self._distance(own.float(), other.detach().float()) for own, other in pairs]).sum()

    def _distance(self, found: Tensor, expected: Tensor) -> Tensor:
        if not (are_logits(expected) if self.logits is None else self.logits):
            centered = expected - expected.mean()
            return (found - expected).square().mean() / centered.square().mean().clamp_min(_TINY)
        classes, usual = expected.shape[-1], _ONE_ROW if expected.ndim <= _ROWS else _SEQUENCE
        temperature = usual if self.temperature is None else self.temperature
        log_p = F.log_softmax(expected.reshape(-1, classes) / temperature, -1)
        log_q = F.log_softmax(found.reshape(-1, classes) / temperature, -1)
        gaps = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q))
        return temperature**2 * gaps.sum() / max(1, len(log_p))


IMITATION = Imitation()
"""At the usual temperatures."""


def _compared(outputs: Any) -> list[Tensor]:
    """The tensors of outputs that count."""
    if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), Tensor):
        return [outputs["logits"]]
    named = tensor_in(outputs) if hasattr(outputs, "logits") else None
    if named is not None:
        return [named]
    items = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
    outer = [item for item in items if isinstance(item, Tensor)] if isinstance(items, list | tuple) else []
    real = [value for value in outer or tensors_in(outputs) if value.is_floating_point() and value.ndim > 0]
    return [value for value in real if value.shape[0] == real[0].shape[0]]
