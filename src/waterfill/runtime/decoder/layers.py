"""Layers of decoders whose forward pass takes one token by the short way of `token`."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

from torch import Tensor, nn

from waterfill.runtime.decoder import token

_FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}
"""Of transformers, that compute the same; by the folder of the family, how its classes are called."""


def shorten(model: nn.Module) -> None:
    """Let layers of a packed model take single tokens by the short way, in place, where they are of a kind that has
    one. They stay what they are, names and classes included, and run as before in all other cases."""
    for module in model.modules():
        kinds = _kinds(type(module))  # type: ignore[arg-type]  # classes do have a hash
        if kinds is not None and token.fits(kinds, module):
            module.__class__ = _shortened(kinds)
            own = module.__dict__.get("forward")  # which transformers 5.0 leaves behind; it is bound to the old class
            if getattr(own, "__func__", None) is kinds.layer.forward:
                del module.__dict__["forward"]


@cache
def _kinds(kind: Any) -> token.Kinds | None:
    """The classes of a layer's family; None for what is no such layer."""
    package, _, name = kind.__module__.partition(".models.")
    family = _FAMILIES.get(name.partition(".")[0])
    known = package == "transformers" and family is not None and kind.__name__ == f"{family}DecoderLayer"
    return token.Kinds.of(kind, f"{family}") if known else None


@cache
def _shortened(kinds: token.Kinds) -> Any:
    """A class like that of a layer, with the short way before its forward pass."""
    kind = kinds.layer

    @wraps(kind.forward)
    def forward(self: nn.Module, hidden_states: Tensor, *more: Any, **given: Any) -> Any:
        found = None if more else token.through(kinds, self, hidden_states, given)
        return kind.forward(self, hidden_states, *more, **given) if found is None else found

    def reduced(self: nn.Module, protocol: int) -> tuple[Callable[..., Any], tuple[Any, ...], Any]:
        return _new, (kind,), self.__getstate__()

    own = {"forward": forward, "__reduce_ex__": reduced, "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), own)


def _new(kind: Any) -> Any:
    """An empty module, for copies and pickles: the class itself is not found by its name."""
    kinds = _kinds(kind)
    made = kind if kinds is None else _shortened(kinds)
    return made.__new__(made)
