"""Runs parts of a network for which PyTorch would build no autograd graph, or half of one, like all others."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
import torch.utils.checkpoint as checkpoints


@contextmanager
def plainly() -> Iterator[None]:
    """A block in which, in this thread, re-entrant checkpoints keep what they compute, and nobody enters
    torch.inference_mode.

    The first allow no gradients with respect to chosen tensors, the second none at all; neither changes a result.
    """
    here = get_ident()
    with ExitStack() as stack:
        _replace(stack, checkpoints, "CheckpointFunction", _kept(checkpoints.CheckpointFunction, here))
        enter, leave = _unentered(here)
        _replace(stack, torch.inference_mode, "__enter__", enter)
        _replace(stack, torch.inference_mode, "__exit__", leave)
        yield


def _replace(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _kept(function: Any, thread: int) -> type:
    """A replacement of the function of re-entrant checkpoints, which runs its argument directly."""

    class Kept:
        @staticmethod
        def apply(run: Callable[..., Any], preserve: bool, *args: Any) -> Any:
            return run(*args) if get_ident() == thread else function.apply(run, preserve, *args)

    return Kept


def _unentered(thread: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Replacements of entering and leaving torch.inference_mode that have no effect in one thread."""
    enter, leave = torch.inference_mode.__enter__, torch.inference_mode.__exit__
    passed: set[int] = set()

    def entered(mode: Any) -> None:
        if mode.mode and get_ident() == thread:
            passed.add(id(mode))
        else:
            enter(mode)

    def left(mode: Any, *error: Any) -> None:
        if id(mode) in passed:
            passed.discard(id(mode))
        else:
            leave(mode, *error)

    return entered, left
