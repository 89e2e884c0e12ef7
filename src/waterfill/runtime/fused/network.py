"""The module that `fuse` gives, and how the forward pass of a network is traced for it."""

import inspect
from typing import Any

from torch import fx, nn

from waterfill.errors import BadInput
from waterfill.runtime.layers.base import PackedLayer

_ANEW = "make it anew by `fuse`, from the network that it was made of"


class FusedNetwork(fx.GraphModule):
    """A network whose convolutions hand integers to one another. It shares layers with the one that it was made of."""

    def train(self, mode: bool = True) -> "FusedNetwork":
        """Raises BadInput for training mode, before a layer is changed."""
        if mode:
            raise BadInput("a fused network does not learn, and stays in evaluation mode")
        super().train(False)
        return self

    def __reduce__(self) -> Any:
        raise BadInput(f"a fused network cannot be saved: save that network's file, and {_ANEW}")


def traced(model: nn.Module) -> fx.Graph:
    """The forward pass of a network, with the defaults of its optional arguments. Raises BadInput."""
    given = inspect.signature(model.forward).parameters.values()
    defaults = {each.name: each.default for each in given if each.default is not inspect.Parameter.empty}
    try:
        return _Tracer().trace(model, concrete_args=defaults or None)
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"the network cannot be traced by torch.fx, and stays as it is: {first}") from error


class _Tracer(fx.Tracer):
    """Packed layers are no further looked into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, PackedLayer) or super().is_leaf_module(m, module_qualified_name)
