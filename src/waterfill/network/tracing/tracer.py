"""Traces every product with a weight while a network runs, whichever module or line of code computes it.

A torch function mode receives each call into torch. Where an argument is a weight, a view of one or its transpose, the
rule of the call reports the product to a recorder. Modules need no hooks, so that custom layers, tied weights and
attention written by hand are covered alike.
"""

import types
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from waterfill.network.tracing.operations import RULES
from waterfill.network.tracing.recorder import Recorder, Tracing
from waterfill.network.tracing.views import WeightViews

_GUARDS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


class Tracer(TorchFunctionMode):
    """Reports every product with a weight to `recorder`, while the block runs.

    others: by weight, calls without a rule. reached: weights that took part in a call with one.
    """

    def __init__(self, views: WeightViews, recorder: Recorder) -> None:
        super().__init__()
        self.views = views
        self._tracing = Tracing(views, recorder, self)
        self.others: dict[str, set[str]] = defaultdict(set)
        self.reached: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types_: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Make the call, by its rule if it has one."""
        kwargs = kwargs or {}
        values = list(_tensors([*args, *kwargs.values()]))
        names = [name for value in values for name in self.views.names(value)]
        if not names:
            return func(*args, **kwargs)
        if isinstance(func, types.FunctionType) and not func.__globals__.keys().isdisjoint(_GUARDS):
            with self:  # its own calls are traced
                return _opened(func)(*args, **kwargs)
        called = getattr(func, "__name__", "")
        traced = RULES[called](self._tracing, func, args, kwargs) if called in RULES else NotImplemented
        if traced is not NotImplemented:
            self.reached.update(names)
            return traced
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.is_floating_point() and not any(self.views.names(result)):
            computed = any(self.views.computed(value, result) for value in values)
            for name in () if computed else names:
                self.others[name].add(called.strip("_"))
        return result


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (item for item in value if isinstance(item, Tensor))


@cache
def _opened(func: types.FunctionType) -> types.FunctionType:
    """A torch function written in Python, without the guards by which it would call the mode again as a whole."""
    names = dict(func.__globals__) | dict.fromkeys(_GUARDS, lambda *_: False)
    copy = types.FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy
