"""What every way of learning while compressing has in common, so that one training loop serves all of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.model.compressed import CompressedModel


class Learner(ABC):
    """A network in training and what it will be compressed to. The loop, the loss and the optimizer are the user's.

    Example:
        >>> optimizer = torch.optim.SGD(learner.parameters(), lr=0.01, momentum=0.9)
        >>> for epoch in range(epochs):
        ...     for x, y in loader:
        ...         optimizer.zero_grad()
        ...         (F.cross_entropy(model(x), y) + learner.penalty()).backward()
        ...         learner.after_backward()
        ...         optimizer.step()
        ...         learner.after_step()
        ...     learner.c_step()
        >>> learner.result().save("net.wf")
    """

    model: nn.Module
    file_size: int | None = None
    """Bytes of the file by the last C step, where that has made one."""

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """What the optimizer is to change."""

    def groups(self) -> list[dict[str, Any]]:
        """The same by pace, for an optimizer that takes steps of one size, such as Adam: `params`, and the `pace` that
        the learning rate is to be multiplied by."""
        return [{"params": self.parameters(), "pace": 1.0}]

    def penalty(self) -> Tensor:
        """What is added to the loss, nats: a scalar that gradients run through."""
        return torch.zeros((), dtype=torch.float32, device=next(self.model.parameters()).device)

    @abstractmethod
    def after_backward(self) -> None:
        """Bring the gradients of the model's weights to `parameters`, where these are others."""

    @abstractmethod
    def after_step(self) -> None:
        """Bring what the optimizer has changed to the model's weights, where these are others."""

    @abstractmethod
    def c_step(self) -> None:
        """Compress what has been learned so far."""

    @abstractmethod
    def result(self) -> CompressedModel:
        """The compressed network, within its budget. Raises BudgetError where that cannot be met."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that a snapshot needs beside the model and the optimizer."""

    @abstractmethod
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
