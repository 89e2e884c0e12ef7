"""Inputs of a network, and how it is run on them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.network.running.batches import check_batches, split, spread
from waterfill.network.running.forward import Forward, call


@dataclass(frozen=True, eq=False)
class Inputs:
    """Batches: tensors, tuples of arguments, dicts of them by keyword, or whatever `forward(model, batch)` takes.

    They can be gone through more than once: a list or a loader, no iterator.
    """

    batches: Iterable[Any]
    forward: Forward | None = None

    def check(self, model: object) -> None:
        """Raise BadInput unless `model` is a module, and the batches can be gone through more than once."""
        check_batches(model, self.batches)
        if isinstance(self.batches, Iterator):
            raise BadInput("batches are gone through several times: give a list or a loader, such as inputs.split(32)")

    @property
    def first(self) -> Any:
        """The first batch. Raises BadInput if there is none."""
        for batch in self.batches:
            return batch
        raise BadInput("there are no batches to calibrate with; does the loader yield any, or was it used up?")

    def spread(self, most: int) -> list[Any]:
        """At most about so many of the batches, evenly from first to last."""
        return list(spread(self.batches, most))

    def hold_out(self, share: float) -> "tuple[Inputs, Inputs]":
        """Inputs to fit on and others to decide on. Raises BadInput where there is only one."""
        fitting, held = split(self.batches, share)
        return Inputs(fitting, self.forward), Inputs(held, self.forward)

    def outputs(self, model: nn.Module) -> Iterator[Tensor]:
        """The outputs of a model, batch by batch. Raises BadInput for a batch that the model cannot take."""
        return (call(model, batch, self.forward) for batch in self.batches)
