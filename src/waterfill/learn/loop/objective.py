"""What a network in training is to minimize: a loss of its user's, or how far it is from the network it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.learn.features import stages, watched
from waterfill.learn.loop.training import Training
from waterfill.learn.losses import Imitation
from waterfill.network.running.batches import each_tensor
from waterfill.network.running.forward import Forward, as_deployed, result_of
from waterfill.network.running.state import unchanged

Loss = Callable[[Any, Any], Tensor]
"""(what the model returned, the batch) -> a scalar."""
_ERROR = Imitation(logits=False)
_SAME = 1e-3  # relative squared error up to which two networks see the same


class Objective:
    """A loss, or without one the distance of outputs to those of a reference and, where `features` counts, of stages.

    Args:
        reference: the network as it was, or a teacher; it is not changed.
        loss: (outputs, batch) -> a scalar; None: the distance to the reference.
        training: how much stages count, at which temperature outputs are compared, and whether networks run in
            bfloat16.
    """

    def __init__(self, reference: nn.Module, forward: Forward | None, loss: Loss | None, training: Training) -> None:
        self.reference, self._forward, self._loss, self._bfloat16 = reference, forward, loss, training.bfloat16
        self._imitation = Imitation(training.temperature)
        self._weight = training.features if loss is None else 0.0
        self._stages: tuple[str, ...] = ()
        self._seen: dict[str, Any] = {}
        self._wanted: dict[str, Any] = {}

    @property
    def has_stages(self) -> bool:
        """Whether stages count at all."""
        return self._weight > 0

    @contextmanager
    def watching(self, work: nn.Module) -> Iterator[None]:
        """A block in which the stages of a network in training are noted, and those of the reference."""
        names = self._stages
        with watched(work, names) as self._seen, watched(self.reference, names) as self._wanted:
            yield

    @torch.no_grad()
    def choose_stages(self, copy: nn.Module, batch: Any) -> None:
        """Compare the stages that a copy of the reference, prepared for compression, still sees alike."""
        self._stages = stages(self.reference)
        with self.watching(copy), as_deployed(copy, self.reference):
            for model in (copy, self.reference):
                with unchanged(model):
                    self._run(model, batch)
            both = [name for name in self._stages if name in self._seen and name in self._wanted]
            self._stages = tuple(name for name in both if float(self._error(name)) < _SAME)

    def __call__(self, work: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch, nats: a scalar that gradients run through.

        Networks get copies of the batch, and the reference is left as it was. Raises BadInput for what is no loss.
        """
        device = next(work.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._bfloat16):
            if self._loss is not None:
                return _checked(self._loss(self._run(work, batch), batch))
            with torch.no_grad(), unchanged(self.reference):
                expected = self._run(self.reference, batch)
            distance = self._imitation(self._run(work, batch), expected)
            if not self._stages:
                return distance
            return distance + self._weight * torch.stack([self._error(name) for name in self._stages]).mean()

    def measured(self, work: nn.Module, batch: Any) -> float:
        """The loss of a batch, without gradients; both networks in evaluation mode and left as they are."""
        with self.watching(work), as_deployed(work, self.reference), unchanged(work):
            return float(self(work, batch))

    def _run(self, model: nn.Module, batch: Any) -> Any:
        return result_of(model, each_tensor(batch, Tensor.clone), self._forward)

    def _error(self, name: str) -> Tensor:
        """The squared error of what is seen at a stage, relative to its variance."""
        return _ERROR(self._seen[name], self._wanted[name])


def _checked(loss: Any) -> Tensor:
    """A loss of the user's. Raises BadInput where it is no scalar that gradients run through."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise BadInput(f"the loss is to be a tensor of one number, and it is {found}; take its mean")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise BadInput("no gradient runs through the loss: compute it from the outputs, without detach() or item()")
    return loss.reshape(())
