"""What all packed layers have in common."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.runtime import operators
from waterfill.runtime.leaves import Term

NO_TRAINING = "a packed network does not learn; train it with waterfill.learn, save it, and pack the file"


class PackedLayer(nn.Module):
    """A layer whose weights are terms. It has no gradients and does not learn."""

    _like: Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        """dtype: of the weights of the layer in whose place it stands."""
        super().__init__()
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device="cpu"), persistent=False)
        self.training = False

    def terms(self) -> Iterator[Term]:
        """Its matrices."""
        raise NotImplementedError

    def multiplications(self, x: Tensor, y: Tensor) -> int:
        """How many its matrices take, by their form, of its inputs for its outputs; 0 where weights are only read."""
        return 0

    def train(self, mode: bool = True) -> "PackedLayer":
        """Raises BadInput for training mode."""
        if mode:
            raise BadInput(NO_TRAINING)
        super().train(mode)
        return self

    def _check(self, x: Tensor) -> None:
        """Raises BadInput for inputs of another sort or device than its own."""
        operators.check_type(x, self._like)

    def extra_repr(self) -> str:
        return ", ".join(f"{term.cols} to {term.rows}, {term.words}" for term in self.terms())


def shared(layer: Any, like: nn.Module, names: tuple[str, ...]) -> None:
    """Give a packed layer some attributes of the layer in whose place it stands."""
    for name in names:
        setattr(layer, name, getattr(like, name))
