"""Which items of a batch are inputs and which targets, and which output row predicts which target.

Language models of transformers take `labels` equal to `input_ids` and shift them inside: an output predicts the token
after it. Whether a model does so is not guessed: it is given its labels, and the loss that it returns decides.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.arithmetic import AsSet
from waterfill.errors import BadInput
from waterfill.evaluation.metrics import IGNORED, Score
from waterfill.network.running.batches import are_arguments, tensors_in
from waterfill.network.running.forward import Forward, call

Targets = str | None | Callable[[Any], Tensor | None]
_NAMED = ("targets", "labels")
_CLOSE = 1e-2, 1e-4  # relative and absolute; a loss may be rounded to bfloat16


@dataclass
class Reader:
    """Splits batches into inputs and targets; their convention is determined at the first batch.

    labelled: whether the model is run with its labels, because it returns a loss for them. shifted: whether an output
    predicts the target after it. None: not known yet.
    """

    targets: Targets
    forward: Forward | None
    labelled: bool | None = None
    shifted: bool | None = None

    def split(self, batch: Any) -> tuple[Any, Tensor | None]:
        """The inputs of a batch, and its targets if there are any."""
        if callable(self.targets):
            return batch, self.targets(batch)
        if self.targets not in ("last", None):
            raise BadInput(f'targets={self.targets!r}; it is "last", None, or a function of the batch')
        if self.targets is None or isinstance(batch, Tensor):
            return batch, None
        if isinstance(batch, Mapping):
            name = next((name for name in _NAMED if name in batch), None)
            rest = {key: value for key, value in batch.items() if key != name}
            return rest, None if name is None else batch[name]
        if are_arguments(batch) and len(batch) > 1 and isinstance(batch[-1], Tensor):
            return batch[0] if len(batch) == 2 else tuple(batch[:-1]), batch[-1]
        return batch, None

    def run(self, model: nn.Module, batch: Any) -> tuple[Tensor, float | None]:
        """The outputs of a model for a batch, and the loss that it returns where it takes the targets too."""
        inputs, targets = self.split(batch)
        plain = self.forward.function is None if isinstance(self.forward, AsSet) else self.forward is None
        named = isinstance(batch, Mapping) and self.targets == "last" and targets is not None and plain
        if not named or self.labelled is False:
            return call(model, inputs, self.forward), None
        loss = _Loss()
        try:
            own = replace(self.forward, function=loss.forward) if isinstance(self.forward, AsSet) else loss.forward
            outputs = call(model, batch, own)
            self.labelled = self.labelled or loss.value is not None
        except BadInput:  # it takes no labels
            if self.labelled:
                raise
            self.labelled = False
        return (outputs, loss.value) if self.labelled else (call(model, inputs, self.forward), None)

    def aligned(
        self, batch: Any, outputs: Tensor, loss: float | None, logits: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs and the targets that they predict, both cut to fit. Raises BadInput where that is unclear."""
        inputs, targets = self.split(batch)
        if targets is None:
            return outputs, None
        if self.shifted is None and logits and bool((targets != IGNORED).any()):
            self.shifted = self._is_shifted(inputs, outputs, targets, loss)
        return (outputs[:, :-1], targets[:, 1:]) if self.shifted else (outputs, targets)

    def _is_shifted(self, inputs: Any, outputs: Tensor, targets: Tensor, loss: float | None) -> bool:
        sequences = outputs.ndim == 3 and targets.shape == outputs.shape[:2] and outputs.shape[1] > 1
        if loss is None or targets.is_floating_point():
            if sequences and not callable(self.targets) and _copied(inputs, targets):
                raise BadInput(
                    "the targets are the inputs themselves, and the model returns no loss that says which output "
                    "stands for which; let the batches be (tokens[:, :-1], tokens[:, 1:]), or give targets=, a function"
                )
            return False
        own, after = _nats(outputs, targets), _nats(outputs[:, :-1], targets[:, 1:]) if sequences else None
        gaps = [abs(nats - loss) for nats in (own, after) if nats is not None]
        if not gaps or min(gaps) > _CLOSE[0] * abs(loss) + _CLOSE[1]:
            losses = f"{own:.4g}" + (f", and {after:.4g} if each output predicts the token after it" if after else "")
            raise BadInput(
                f"the model's own loss for its labels is {loss:.4g}, but the log loss of its outputs is {losses}: they "
                "are no class numbers of these outputs; give targets=, a function of the batch, or metrics= of your own"
            )
        return after is not None and abs(after - loss) < abs((own if own is not None else torch.inf) - loss)


class _Loss:
    """Calls a model with a whole batch by keyword and keeps the loss in its result."""

    def __init__(self) -> None:
        self.value: float | None = None

    def forward(self, model: nn.Module, batch: Any) -> Any:
        result = model(**batch)
        loss = result.get("loss") if isinstance(result, Mapping) else getattr(result, "loss", None)
        if loss is None and isinstance(result, tuple | list):
            loss = next((item for item in result if isinstance(item, Tensor) and item.ndim == 0), None)
        if isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point():
            self.value = float(loss)
        return result


def _nats(outputs: Tensor, targets: Tensor) -> float | None:
    """The mean log loss; None where no target counts."""
    score = Score()
    score.add(outputs, targets)
    return score.nats / score.rows if score.rows else None


def _copied(inputs: Any, targets: Tensor) -> bool:
    """Whether the targets that count equal the inputs at the same places."""
    counted = targets != IGNORED
    same = (t for t in tensors_in(inputs) if t.shape == targets.shape and not t.is_floating_point())
    return any(bool((t == targets)[counted].all()) for t in same)
