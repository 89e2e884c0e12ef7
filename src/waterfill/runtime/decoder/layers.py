"""Layers of decoders whose forward pass takes one token by the short way of `token`."""

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn

from waterfill.runtime.decoder import token

_KNOWN = {("llama", "LlamaDecoderLayer"), ("mistral", "MistralDecoderLayer"), ("qwen2", "Qwen2DecoderLayer")}
"""Of transformers, that compute the same."""


def shorten(model: nn.Module) -> None:
    """Let layers of a packed model take single tokens by the short way, in place, where they are of a kind that has
    one. They stay what they are, names and classes included, and run as before in all other cases."""
    for module in model.modules():
        if _is_known(type(module)) and token.fits(module):
            kind: Any = type(module)
            module.__class__ = _shortened(kind)


def _is_known(kind: type) -> bool:
    package, _, name = kind.__module__.partition(".models.")
    return package == "transformers" and (name.partition(".")[0], kind.__name__) in _KNOWN


@cache
def _shortened(kind: Any) -> Any:
    """A class like another one, with the short way before its forward pass."""

    def forward(self: nn.Module, hidden_states: Tensor, *more: Any, **given: Any) -> Any:
        found = None if more else token.through(self, hidden_states, given)
        return kind.forward(self, hidden_states, *more, **given) if found is None else found

    def reduced(self: nn.Module, protocol: int) -> tuple[Callable[..., Any], tuple[Any, ...], Any]:
        return _new, (kind,), self.__getstate__()

    own = {"forward": forward, "__reduce_ex__": reduced, "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), own)


def _new(kind: Any) -> Any:
    """An empty module, for copies and pickles: the class itself is not found by its name."""
    made = _shortened(kind)
    return made.__new__(made)
