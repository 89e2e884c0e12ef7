"""How a block is called: where its hidden state stands among the arguments and in what it returns."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.network.running.batches import each_tensor, like

_PLAIN = (Tensor, bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_KEPT = 8  # tensors of one shape that are compared with a new one


@dataclass(frozen=True, eq=False)
class BlockCall:
    """The arguments of a block. at: the place or the keyword of its hidden state, which is left out of them."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    at: int | str

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "tuple[Self, Tensor]":
        """The call and its hidden state: the first tensor of real numbers. Raises BadInput where there is none."""
        places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        at = next((key for key, value in places if isinstance(value, Tensor) and value.is_floating_point()), None)
        if at is None:
            raise BadInput("a block gets no tensor of real numbers, so that its hidden state is not known")
        hidden: Tensor = args[at] if isinstance(at, int) else kwargs[at]
        return cls(tuple(None if i == at else v for i, v in enumerate(args)), _without(kwargs, at), at), hidden

    def run(self, block: nn.Module, hidden: Tensor) -> Any:
        """What the block returns for a hidden state; caches and other objects are handed to it as copies."""
        device = next((parameter.device for parameter in block.parameters()), hidden.device)
        args, kwargs = (_own(value, device) for value in (list(self.args), dict(self.kwargs)))
        hidden = hidden.to(device)
        if isinstance(self.at, int):
            args[self.at] = hidden
        else:
            kwargs[self.at] = hidden
        return block(*args, **kwargs)


def _without(kwargs: Mapping[str, Any], at: int | str) -> dict[str, Any]:
    return {key: None if key == at else value for key, value in kwargs.items()}


def _own(value: Any, device: torch.device) -> Any:
    """Arguments as a block may have them: tensors on its device, objects that it may write to copied."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, _PLAIN) or callable(value):
        return value
    if type(value) in (tuple, list) or hasattr(value, "_make"):
        return like(value, [_own(item, device) for item in value])
    if type(value) is dict:
        return {key: _own(item, device) for key, item in value.items()}
    return copy.deepcopy(value)


class Shared:
    """Equal tensors in the arguments of many calls, kept once: masks and positions are the same for most batches."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], list[Tensor]] = {}

    def call(self, call: BlockCall) -> BlockCall:
        """The call with tensors that were met before in the place of equal ones."""
        args, kwargs = (each_tensor(value, self._one) for value in (call.args, dict(call.kwargs)))
        return BlockCall(args, kwargs, call.at)

    def _one(self, value: Tensor) -> Tensor:
        known = self._known.setdefault((value.shape, value.dtype, value.device), [])
        found = next((other for other in known if other is value or torch.equal(other, value)), None)
        if found is None:
            found = value.detach()
            known.append(found)
            del known[:-_KEPT]
        return found


@dataclass(frozen=True, eq=False)
class Form:
    """What a block returns. template: such a result. at: the place of the hidden state in it; None for the whole."""

    template: Any
    at: int | str | None

    @classmethod
    def of(cls, result: Any, hidden: Tensor) -> Self:
        """Found from a result of a block that was given `hidden`. Raises BadInput where no tensor in it is like it."""
        if _alike(result, hidden):
            return cls(None, None)
        places = result.items() if isinstance(result, Mapping) else enumerate(result) if _is_row(result) else ()
        at = next((key for key, value in places if _alike(value, hidden)), None)
        if at is None:
            raise BadInput(
                f"a block gets a hidden state {list(hidden.shape)} and returns {type(result).__name__} without a "
                "tensor of that shape, so that no block can follow it"
            )
        return cls(result, at)

    def take(self, result: Any) -> Tensor:
        """The hidden state in a result."""
        found: Tensor = result if self.at is None else result[self.at]
        return found

    def give(self, hidden: Tensor) -> Any:
        """A result with this hidden state."""
        if self.at is None:
            return hidden
        if isinstance(self.template, Mapping):
            made = copy.copy(self.template)
            made[self.at] = hidden  # type: ignore[index]  # a mapping that can be copied can be written to
            return made
        return like(self.template, [hidden if i == self.at else item for i, item in enumerate(self.template)])


def _is_row(result: Any) -> bool:
    return type(result) in (tuple, list) or hasattr(result, "_make")


def _alike(value: Any, hidden: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == hidden.shape and value.is_floating_point()
