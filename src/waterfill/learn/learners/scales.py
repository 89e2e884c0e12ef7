"""The scales of a compressed network, and other numbers beside its codes, that are trained."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.learn.learners.vectors import can_be_learned
from waterfill.model.compressed import CompressedModel
from waterfill.model.entry import Entry, encode
from waterfill.network.layout import RAW, VECTOR
from waterfill.parts import Numbers, by_numbers

_PACE = 0.3
"""Of a relative change, for an optimizer that takes steps of one size: codes hang on each of these numbers."""
_NUMBERS = "numbers."


class Scales:
    """Steps, scales, levels of codebooks and kept entries of the weights of a network, as relative changes.

    model: the network with the weights of `made`.
    """

    def __init__(self, model: nn.Module, made: CompressedModel) -> None:
        values = dict(model.named_parameters(remove_duplicate=False))
        self._made, self._values = made, dict[str, Tensor]()
        self._parts: dict[str, list[Numbers]] = {}
        self._changes: dict[str, list[list[Tensor]]] = {}
        self._restored: dict[str, Tensor] = {}
        for name, entry in made.entries.items():
            if entry.layout.role in (VECTOR, RAW) or name not in values or not can_be_learned(values[name]):
                continue
            found = [by_numbers(part) for part in entry.parts]
            if any(one.leaves for one in found):
                device = values[name].device
                self._values[name], self._parts[name] = values[name], found
                self._changes[name] = [[leaf.to(device).requires_grad_() for leaf in one.leaves] for one in found]

    def __len__(self) -> int:
        return len(self._parts)

    def parameters(self) -> list[Tensor]:
        """What an optimizer changes, float32."""
        return [change for name in self._changes for change in self._all(name)]

    def groups(self) -> list[dict[str, Any]]:
        """As `Learner.groups`."""
        return [{"params": self.parameters(), "pace": _PACE}] if self._parts else []

    def _all(self, name: str) -> list[Tensor]:
        """The changes of all matrices of a weight."""
        return [change for several in self._changes[name] for change in several]

    def after_backward(self) -> None:
        """Bring gradients to `parameters`."""
        for name, value in self._values.items():
            changes = self._all(name)
            if value.grad is None:
                continue
            restored = self._restored.pop(name, None)
            restored = self._restore(name) if restored is None else restored
            found = torch.autograd.grad(restored, changes, value.grad.to(restored).reshape(restored.shape))
            for change, gradient in zip(changes, found, strict=True):
                change.grad = gradient
            value.grad = None

    def _restore(self, name: str) -> Tensor:
        """A weight from its numbers, as matrices [matrices, rows, cols]; gradients run through."""
        with torch.enable_grad():
            found = [one.restore(given) for one, given in zip(self._parts[name], self._changes[name], strict=True)]
            return torch.stack([matrix.to(self._values[name].device) for matrix in found])

    @torch.no_grad()
    def after_step(self) -> None:
        """Bring what was learned to the network."""
        for name, value in self._values.items():
            self._restored[name] = self._restore(name)
            value.copy_(self._made.entries[name].layout.join(list(self._restored[name].detach())))

    def state(self) -> dict[str, Tensor]:
        """All that is not in the network itself."""
        every = ((name, i, change) for name in self._changes for i, change in enumerate(self._all(name)))
        return {f"{_NUMBERS}{i}.{name}": change.detach() for name, i, change in every}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for name in self._changes:
            for i, change in enumerate(self._all(name)):
                change.copy_(state[f"{_NUMBERS}{i}.{name}"])
        self.after_step()

    @torch.no_grad()
    def entries(self) -> dict[str, Entry]:
        """The weights with these numbers, as they are written."""
        return {name: self._written(name) for name in self._parts}

    @torch.no_grad()
    def shorter(self, entries: Mapping[str, Entry], least: float) -> dict[str, Entry]:
        """The same, but where a weight takes more bytes than before, changes below `least` are none of several numbers
        together: those that stay take the fewest bytes."""
        longer = {name for name, own in entries.items() if len(own.blob) > len(self._made.entries[name].blob)}
        return {name: self._written(name, least) if name in longer else own for name, own in entries.items()}

    def _written(self, name: str, least: float = 0.0) -> Entry:
        given = [[_large(change.detach().cpu(), least) for change in own] for own in self._changes[name]]
        parts = tuple(one.rebuilt(own) for one, own in zip(self._parts[name], given, strict=True))
        return replace(self._made.entries[name], parts=parts, blob=encode(parts), error=None)


def _large(change: Tensor, least: float) -> Tensor:
    """Changes of at least so much; of one number alone as it is."""
    return change if change.numel() == 1 else torch.where(change.abs() >= least, change, 0.0)
