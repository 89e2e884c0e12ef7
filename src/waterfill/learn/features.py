"""What networks see inside: the outputs of their modules, noted while they run."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from waterfill.errors import BadInput


@contextmanager
def watched(model: nn.Module, names: Iterable[str], whose: str = "network") -> Iterator[dict[str, Any]]:
    """A block in which the last outputs of modules are noted, by their names. whose: the model, for an error.

    Raises:
        BadInput: for a name that no module has.
    """
    seen: dict[str, Any] = {}
    handles = []
    try:
        for name in names:

            def note(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                seen[name] = output

            handles.append(_module(model, name, whose).register_forward_hook(note))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def stages(model: nn.Module) -> tuple[str, ...]:
    """The names of the stages of a network: of the first modules, from the outside in, that are not alone, and of the
    items of lists among them; only of those that hold several modules, as what a single one sees may be folded."""
    prefix, module = "", model
    while len(children := dict(module.named_children())) == 1:
        name, module = next(iter(children.items()))
        prefix += f"{name}."
    found = []
    for name, child in children.items():
        items = {f"{name}.{i}": item for i, item in child.named_children()} if _is_list(child) else {name: child}
        found += [f"{prefix}{key}" for key, item in items.items() if any(True for _ in item.children())]
    return tuple(found)


def _is_list(module: nn.Module) -> bool:
    """Whether a module only holds others and is never run itself."""
    return isinstance(module, nn.ModuleList | nn.ModuleDict)


def _module(model: nn.Module, name: str, whose: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        known = ", ".join(name for name, _ in model.named_children())
        raise BadInput(f"the {whose} has no module {name!r}; it has {known} and what is in them") from error
