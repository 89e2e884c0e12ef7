"""The run of like blocks in the middle of a network, such as the layers of a transformer."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from waterfill.errors import BadInput

_FEWEST = 2  # blocks of a run
_LEAST_SHARE = 0.5  # of the entries beside tables of tokens, that the blocks hold
_TALL = 4  # a table of tokens has more than so many times as many rows as columns


@dataclass(frozen=True)
class Blocks:
    """Blocks that run one after the other. prefix: the name of the list. names: of its members, in order."""

    prefix: str
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def owner_of(self, name: str) -> int | None:
        """The number of the block that holds a tensor; None for one outside of all blocks."""
        return next((i for i, block in enumerate(self.names) if name.startswith(f"{block}.")), None)


def blocks_of(model: nn.Module, prefix: str | None = None) -> Blocks:
    """The blocks of a network: the members of the list of that name, or of the list that holds the most entries.

    Raises BadInput, with the reason: no such list, members that are not alike, or, where none is named, a list that
    holds less than half of the network beside its tables of tokens.
    """
    if prefix is not None:
        module = dict(model.named_modules()).get(prefix)
        if module is None:
            known = ", ".join(sorted(name for name, _ in _lists(model))) or "none"
            raise BadInput(
                f"the network has no module {prefix!r} to take the blocks from; its lists of modules: {known}"
            )
        return _checked(prefix, module)
    lists = {name: _entries(module) for name, module in _lists(model)}
    if not lists:
        raise BadInput("the network holds no list of modules (ModuleList, Sequential) that could be its blocks")
    largest = max(lists, key=lambda name: lists[name])
    blocks = _checked(largest, model.get_submodule(largest))
    others = sum(p.numel() for p in model.parameters() if not (p.ndim == 2 and p.shape[0] > _TALL * p.shape[1]))
    if lists[largest] < _LEAST_SHARE * others:
        share = lists[largest] / max(1, others)
        raise BadInput(
            f"its largest list of modules, {largest!r}, holds {share:.0%} of the network; blocks hold half of it at "
            "least"
        )
    return blocks


def _lists(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if name and isinstance(module, nn.ModuleList | nn.Sequential) and len(module) >= _FEWEST:
            yield name, module


def _checked(prefix: str, module: nn.Module) -> Blocks:
    """The members of a list. Raises BadInput unless they are of one class."""
    children = dict(module.named_children())
    if len(children) < _FEWEST:
        raise BadInput(f"{prefix!r} holds {len(children)} modules; a run of blocks has {_FEWEST} or more")
    kinds = {name: type(child) for name, child in children.items()}
    first = next(iter(kinds))
    odd = next((name for name, kind in kinds.items() if kind is not kinds[first]), None)
    if odd is not None:
        raise BadInput(
            f"the modules of {prefix!r} are not alike: {first} is a {kinds[first].__name__}, {odd} a "
            f"{kinds[odd].__name__}; name a list of one class"
        )
    if any(isinstance(child, torch.jit.ScriptModule) for child in children.values()):
        raise BadInput(f"the modules of {prefix!r} are scripted and cannot be run one by one")
    if not _entries(module):
        raise BadInput(f"the modules of {prefix!r} hold no parameters")
    return Blocks(prefix, tuple(f"{prefix}.{name}" for name in children))


def _entries(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
