"""Whether modules are still what they were when they were looked at: asked in microseconds, at every token."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class Seal:
    """What some modules hold, and that nothing looks on when they run.

    modules: whose classes, submodules, parameters, buffers and forward passes are to stay. told: dictionaries, and keys
    whose values are to stay. It errs to one side: `whole` may be False although nothing has changed that matters. All
    is in lists side by side, which are compared without a step of Python for each.
    """

    def __init__(self, modules: Iterable[nn.Module], told: Iterable[tuple[dict[str, Any], Iterable[str]]]) -> None:
        self._modules = list(modules)
        self._kinds = [type(module) for module in self._modules]
        self._hooks = [getattr(module, name) for module in self._modules for name in _HOOKS]
        held = [own for m in self._modules for own in (m._modules, m._parameters, m._buffers) if own]
        self._held, self._holding = held, [dict(own) for own in held]
        pairs = [(own, name) for own, names in told for name in names if name in own]
        pairs += [(module.__dict__, "forward") for module in self._modules]
        self._dicts, self._names = [own for own, _ in pairs], [name for _, name in pairs]
        self._told = [own.get(name) for own, name in pairs]
        named = [values for m in self._modules for values in (m._parameters.values(), m._buffers.values())]
        self._tensors: list[Tensor] = [value for values in named for value in values if value is not None]
        self._places = [tensor.data_ptr() for tensor in self._tensors]

    @property
    def whole(self) -> bool:
        """Whether all is as it was."""
        try:
            return (
                not any(self._hooks)
                and list(map(type, self._modules)) == self._kinds
                and list(map(Tensor.data_ptr, self._tensors)) == self._places
                and list(map(dict.get, self._dicts, self._names)) == self._told
                and self._held == self._holding
                and not (torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)
            )
        except RuntimeError:  # of another tensor, which has no truth value
            return False
