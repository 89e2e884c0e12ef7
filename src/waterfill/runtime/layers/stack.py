"""Stacks of matrices, as mixtures of experts have them, of which one is taken at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from waterfill.runtime.layers.base import PackedLayer
from waterfill.runtime.leaves import Term


class PackedStack(PackedLayer):
    """In the place of a parameter [count, rows, cols]: `stack[i]` is a matrix that multiplies from compressed weights.
    In every other use it is the whole stack, restored anew each time."""

    def __init__(self, terms: Sequence[Term], like: Tensor) -> None:
        super().__init__(like.dtype)
        self.matrices = nn.ModuleList(terms)

    def terms(self) -> Iterator[Term]:
        return (term for term in self.matrices if isinstance(term, Term))

    def restored(self) -> Tensor:
        """All of it: [count, rows, cols]."""
        return torch.stack([term.restored() for term in self.terms()]).to(self._like.dtype)

    def __len__(self) -> int:
        return len(self.matrices)

    def __getitem__(self, index: Any) -> "Taken | Tensor":
        one = isinstance(index, int) or (isinstance(index, Tensor) and index.dim() == 0 and index.dtype != torch.bool)
        if not one:
            return self.restored()[index]
        term = self.matrices[int(index)]
        assert isinstance(term, Term)  # all are
        return Taken(term, self._like.dtype)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or not hasattr(Tensor, name):
                raise
        return getattr(self.restored(), name)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], _: Any, given: tuple[Any, ...] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        return _of_restored(function, given, named or {})


class Taken:
    """A matrix of a stack: a linear function of inputs multiplies from it, and in every other use it is restored."""

    def __init__(self, term: Term, dtype: torch.dtype) -> None:
        self.term, self.dtype = term, dtype

    def restored(self) -> Tensor:
        """The matrix [rows, cols]."""
        return self.term.restored().to(self.dtype)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(f"a matrix of a packed stack has no attribute {name!r}")
        return getattr(self.restored(), name)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], _: Any, given: tuple[Any, ...] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if function is F.linear and len(given) in (2, 3) and not named and isinstance(given[1], cls):
            x, taken, *rest = given
            if isinstance(x, Tensor):
                return _linear(x, taken.term, rest[0] if rest else None)
        return _of_restored(function, given, named)


def _linear(x: Tensor, term: Term, bias: Tensor | None) -> Tensor:
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    made: Tensor = term(x)
    return made if bias is None else made + bias.to(made.dtype)


def _of_restored(function: Callable[..., Any], given: Any, named: Mapping[str, Any]) -> Any:
    """A function of torch with whole tensors in the place of packed ones."""

    def whole(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(whole(each) for each in value)
        return value.restored() if isinstance(value, PackedStack | Taken) else value

    return function(*whole(tuple(given)), **{name: whole(value) for name, value in named.items()})
