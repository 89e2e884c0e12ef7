"""Which stacks of matrices can be packed: those of modules that take one matrix at a time, as their code says."""

import inspect
import re
from collections.abc import Iterator

from torch import Tensor, nn

from waterfill.model.entry import Entry
from waterfill.network.layout import STACK
from waterfill.runtime.layers.base import PackedLayer
from waterfill.runtime.layers.stack import PackedStack
from waterfill.runtime.packing.table import KINDS, WHY
from waterfill.runtime.terms import WholeTerm, term_of


def stacks_of(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The parameters with three dimensions that are no layer's: name, module, and the name that they have there."""
    for prefix, module in model.named_modules():
        if not isinstance(module, (*KINDS, PackedLayer)):
            for name, value in module.named_parameters(recurse=False):
                if value.ndim == 3:
                    yield f"{prefix}.{name}" if prefix else name, module, name


def packed_stack(entry: Entry, module: nn.Module, name: str, size: int) -> "PackedStack | str":
    """A packed stack in the place of a parameter, or why it stays. size: bytes of an input as an integer."""
    if entry.layout.role != STACK or entry.layout.dtype.is_complex:
        return "no stack of matrices of real numbers"
    if not _one_at_a_time(module, name):
        return f"the code of {type(module).__name__} does not take one matrix at a time"
    held: Tensor = getattr(module, name)
    terms = [term_of(part.product(), size) for part in entry.parts]
    if all(isinstance(term, WholeTerm) for term in terms):
        return next(term.reason for term in terms if isinstance(term, WholeTerm))
    return PackedStack(terms if held.is_meta else [term.to(held.device) for term in terms], held)


def put_stack(module: nn.Module, name: str, made: "PackedStack | str") -> None:
    """Set a packed stack in the place of a parameter, or note why it stays."""
    if isinstance(made, str):
        setattr(module, f"{WHY}_{name}", made)
        return
    del module._parameters[name]
    module.add_module(name, made)
    config = getattr(module, "config", None)
    if getattr(config, "_experts_implementation", None) is not None:
        config._experts_implementation = "eager"  # type: ignore[union-attr]  # the others take the whole stack


def _one_at_a_time(module: nn.Module, name: str) -> bool:
    """Whether the forward pass, as it is written, takes the parameter as `self.name[...]` only."""
    try:
        source = inspect.getsource(inspect.unwrap(type(module).forward))
    except (OSError, TypeError):
        return False
    uses = re.findall(rf"self\.{re.escape(name)}\b(\[?)", source)
    return bool(uses) and all(uses)
