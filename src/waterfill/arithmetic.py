"""Arithmetic that does not depend on PyTorch's global state: the same network gives the same file under autocast.

What the user wrote (the network, a loss, a measure) runs as the user has set things up; what decides about bits does
not. Every tensor names its dtype and device besides, as their global state is used in too many places.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

P = ParamSpec("P")
R = TypeVar("R")

_DEVICES = ("cpu", "cuda", "xpu")  # whose autocast state every PyTorch from 2.4 on reports
_FULL_FLOAT32 = "highest"
_DENORMAL = 1e-40  # a float32 without a leading one


@contextmanager
def own_arithmetic() -> Iterator[None]:
    """A block without autocast, with whole products of float32 and with denormal numbers; then all is as it was."""
    with ExitStack() as stack:
        for device in _autocast():
            stack.enter_context(torch.autocast(device, enabled=False))
        precision = torch.get_float32_matmul_precision()
        if precision != _FULL_FLOAT32:
            stack.callback(torch.set_float32_matmul_precision, precision)
            torch.set_float32_matmul_precision(_FULL_FLOAT32)
        if np.float32(_DENORMAL) * np.float32(1) == 0:  # the state of this thread, which nothing else reports
            stack.callback(torch.set_flush_denormal, True)
            torch.set_flush_denormal(False)
        yield


def by_own_arithmetic(function: Callable[P, R]) -> Callable[P, R]:
    """The function in a block of `own_arithmetic`; its argument `forward=` runs in what is set where it is called."""
    runs_model = "forward" in inspect.signature(function).parameters

    @wraps(function)
    def settled(*args: P.args, **kwargs: P.kwargs) -> R:
        if runs_model:
            given: Any = kwargs.get("forward")
            kwargs["forward"] = AsSet.now(given)
        with own_arithmetic():
            return function(*args, **kwargs)

    return settled


class FitsByOwnArithmetic:
    """Classes whose `fit` runs by our own arithmetic, those that others write included."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "fit" in vars(cls):
            setattr(cls, "fit", by_own_arithmetic(vars(cls)["fit"]))  # noqa: B010 - the base class has no such method


@dataclass(frozen=True)
class AsSet:
    """A function of the user's, or None for the model itself, that runs under the autocast and the precision of the
    place where it was given. autocast: device, dtype and whether casts are kept."""

    function: Callable[..., Any] | None
    autocast: tuple[tuple[str, torch.dtype, bool], ...]
    precision: str

    @classmethod
    def now(cls, function: Callable[..., Any] | None) -> Any:
        """The function under what is set now: itself, where that is nothing or it was given before."""
        precision, kept = torch.get_float32_matmul_precision(), torch.is_autocast_cache_enabled()
        autocast = tuple((device, torch.get_autocast_dtype(device), kept) for device in _autocast())
        if isinstance(function, cls) or (not autocast and precision == _FULL_FLOAT32):
            return function
        return cls(function, autocast, precision)

    @contextmanager
    def block(self) -> Iterator[None]:
        """A block in which the function is to run."""
        before = torch.get_float32_matmul_precision()
        with ExitStack() as stack:
            if self.autocast:
                torch.clear_autocast_cache()  # else casts of weights that have changed since would be reused
            for device, dtype, kept in self.autocast:
                stack.enter_context(torch.autocast(device, dtype=dtype, cache_enabled=kept))
            stack.callback(torch.set_float32_matmul_precision, before)
            torch.set_float32_matmul_precision(self.precision)
            yield


def _autocast() -> list[str]:
    """The devices for which autocast is on."""
    return [device for device in _DEVICES if torch.is_autocast_enabled(device)]
