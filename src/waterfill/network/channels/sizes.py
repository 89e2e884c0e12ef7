"""The sizes of layers that lost channels, as text that travels in a file, and a module made to have them."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from waterfill.errors import BadInput, Mismatch
from waterfill.network.channels.kind import IN, OUT, Kind, keep
from waterfill.network.channels.layers import Convolution, Dense, Embedding, GroupNorm, Norm, Transposed, Turned
from waterfill.network.channels.recurrent import Recurrent
from waterfill.network.tensors import is_lazy

KINDS = (Dense(), Convolution(), Transposed(), Turned(), Embedding(), Norm(), GroupNorm(), Recurrent())
NOTE = "channels"
"""The note of a file that holds the sizes of layers with fewer channels than their class builds."""
Sizes = dict[str, dict[str, int]]
"""By the name of a module: "in" and "out", its channels; "bias", 1 where it got one; "gone", 1 where `nn.Identity` took
its place; else an attribute, as ".heads"."""
_TEXT = "_waterfill_channels"
_BIAS, _GONE = "bias", "gone"


def kind_of(layer: nn.Module) -> Kind | None:
    """The kind of a layer; None where its channels are not known, as those of computed weights."""
    held = layer._parameters
    if (
        parametrize.is_parametrized(layer)
        or "weight_g" in held
        or "weight_orig" in held
        or any(map(is_lazy, held.values()))
    ):
        return None
    return next((kind for kind in KINDS if kind.fits(layer)), None)


def layers_with_channels(model: nn.Module) -> dict[str, tuple[nn.Module, Kind]]:
    """The layers of a model whose channels are known, by name, each once."""
    found = ((name, module, kind_of(module)) for name, module in model.named_modules())
    return {name: (module, kind) for name, module, kind in found if kind is not None}


def sizes_between(before: nn.Module, after: nn.Module) -> Sizes:
    """The sizes of the layers of `after` that differ from those of `before`, a module of the same class."""
    sizes: Sizes = {}
    smaller = dict(after.named_modules())
    for name, module in before.named_modules():
        if isinstance(smaller.get(name), nn.Identity) and not isinstance(module, nn.Identity):
            sizes[name] = {_GONE: 1}
    for name, (layer, kind) in layers_with_channels(before).items():
        if name in sizes or name not in smaller:
            continue
        was, now = kind.sizes(layer), kind.sizes(smaller[name])
        found = {side: int(b) for side, a, b in zip((IN, OUT), was, now, strict=True) if a != b}
        if _has_bias(smaller[name]) and not _has_bias(layer):
            found[_BIAS] = 1
        if found:
            sizes[name] = found
    for name, module in before.named_modules():
        if name in sizes or name not in smaller:
            continue
        changed = {f".{key}": b for key, a, b in _numbers(module, smaller[name]) if a != b}
        if changed and kind_of(module) is None:
            sizes[name] = changed
    return sizes


def _numbers(before: nn.Module, after: nn.Module) -> list[tuple[str, int, int]]:
    """Whole numbers among the attributes of two modules: name, and both values."""
    held = vars(after)
    return [(key, value, held[key]) for key, value in vars(before).items() if type(value) is int and key in held]


def _has_bias(layer: nn.Module) -> bool:
    return layer._parameters.get(_BIAS) is not None


def note_sizes(model: nn.Module, sizes: Sizes) -> None:
    """Keep the sizes with the model: as text, an attribute that copies and files of it take along."""
    object.__setattr__(model, _TEXT, json.dumps(sizes, separators=(",", ":")))


def noted_sizes(model: nn.Module) -> Sizes:
    """The sizes of the layers that are noted as smaller, in a model or in parts of it that were pruned alone; none for
    a model whose channels are those of its class."""
    noted: Sizes = {}
    for owner, module in model.named_modules():
        text = vars(module).get(_TEXT)
        for name, wanted in json.loads(text).items() if isinstance(text, str) else ():
            full = ".".join(filter(None, (owner, name)))
            noted[full] = noted.get(full, {}) | wanted
    modules = dict(model.named_modules())
    return {name: _now(modules[name], wanted) for name, wanted in noted.items() if name in modules}


def _now(module: nn.Module, wanted: Mapping[str, int]) -> dict[str, int]:
    """Sizes as a module has them now: parts may have been pruned again, or inside another network."""
    kind = kind_of(module)
    now: dict[str, int] = {} if kind is None else dict(zip((IN, OUT), kind.sizes(module), strict=True))
    return {key: now.get(key, vars(module).get(key.removeprefix("."), value)) for key, value in wanted.items()}


def merged(before: Sizes, after: Sizes) -> Sizes:
    """The sizes of a network that was pruned twice, from those of both times."""
    return {name: before.get(name, {}) | after.get(name, {}) for name in {**before, **after}}


@torch.no_grad()
def shrink(module: nn.Module, sizes: Mapping[str, Mapping[str, int]]) -> nn.Module:
    """Give the layers of a module the sizes that those of a pruned one have; which channels go does not matter, as
    weights are loaded after.

    Args:
        module: a new instance of the class that was pruned, changed in place. One that has the sizes stays as it is.
        sizes: of its layers, `Pruned.sizes`.

    Returns:
        The module.

    Raises:
        Mismatch: a layer that the module lacks, or that is smaller already.
        BadInput: sizes that no pruning would have given.

    Example:
        >>> net = waterfill.channels.shrink(Net(), pruned.sizes)
        >>> net.load_state_dict(pruned.model.state_dict())
    """
    problem = sizes_problem(sizes)
    if problem:
        raise BadInput(f"{problem}: give those of `prune_channels`")
    modules = dict(module.named_modules())
    plan, numbers = [], []
    for name, wanted in sizes.items():
        if name not in modules:
            raise Mismatch(f"the sizes are those of a network with a layer {name!r}, and the {_kind(module)} has none")
        if _GONE in wanted:
            continue
        kind = kind_of(modules[name])
        if kind is None:
            numbers.append((modules[name], _numbers_in(name, modules[name], wanted)))
        else:
            plan.append((modules[name], kind, _kept(name, modules[name], kind, wanted), _BIAS in wanted))
    for layer, kind, kept, biased in plan:
        keep(layer, kind, kept)
        if biased:
            add_bias(layer, kind)
    for owner, values in numbers:
        for key, value in values.items():
            setattr(owner, key, value)
    for name in (name for name, wanted in sizes.items() if name and _GONE in wanted):
        put_in_place(module, name, nn.Identity())
    note_sizes(module, {name: dict(wanted) for name, wanted in sizes.items()})
    return module


def add_bias(layer: nn.Module, kind: Kind) -> None:
    """Give a layer without a bias one of zeros."""
    if not _has_bias(layer):
        weight: Any = layer.weight
        zeros = torch.zeros(kind.sizes(layer)[1], dtype=weight.dtype, device=weight.device)
        layer.register_parameter(_BIAS, nn.Parameter(zeros, requires_grad=weight.requires_grad))


def put_in_place(model: nn.Module, name: str, other: nn.Module) -> nn.Module:
    """Put another module wherever a model holds one; the one that stood there."""
    parent, _, key = name.rpartition(".")
    holder = dict(model.named_modules()).get(parent)
    module: nn.Module | None = None if holder is None else holder._modules.get(key)
    if module is None:  # inside of one that is gone
        return other
    other.train(module.training)
    for owner in list(model.modules()):
        for own, child in owner._modules.items():
            if child is module:
                owner._modules[own] = other
    return module


def _kept(name: str, layer: nn.Module, kind: Kind, wanted: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """By side, the first so many channels. Raises Mismatch where there are fewer."""
    has = dict(zip((IN, OUT), kind.sizes(layer), strict=True))
    for side, size in has.items():
        if wanted.get(side, 0) > size:
            raise Mismatch(f"layer {name!r} has {size} channels ({side}), fewer than the {wanted[side]} of the file")
    chosen = {side: wanted[side] for side in has if side in wanted and wanted[side] != has[side]}
    return {side: torch.arange(count, dtype=torch.int64, device="cpu") for side, count in chosen.items()}


def _numbers_in(name: str, module: nn.Module, wanted: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers for attributes that a module holds. Raises Mismatch where it has none of that name, or less."""
    for key, value in wanted.items():
        held = vars(module).get(key.removeprefix("."))
        if not key.startswith(".") or type(held) is not int or held < value:
            raise Mismatch(
                f"{name!r}, a {_kind(module)}, has no number {key!r} of {value} or more; build the same class"
            )
    return {key.removeprefix("."): value for key, value in wanted.items()}


def held_by(modules: Iterable[nn.Module]) -> Callable[[], None]:
    """A function that gives modules back the tensors and attributes that they have now."""
    before = []
    for module in modules:
        held = vars(module)
        own = ("_parameters", "_buffers", "_modules")
        before.append((module, dict(held) | {key: dict(held[key]) for key in own}))

    def back() -> None:
        for module, held in before:
            vars(module).clear()
            vars(module).update(held)

    return back


def sizes_problem(sizes: Any) -> str:
    """Why something is not what `sizes_between` would give; "" if it is."""
    fine = isinstance(sizes, Mapping) and all(
        isinstance(name, str)
        and isinstance(wanted, Mapping)
        and all(isinstance(key, str) and type(value) is int and value > 0 for key, value in wanted.items())
        for name, wanted in sizes.items()
    )
    return "" if fine else "these are no sizes of layers"


def _kind(module: nn.Module) -> str:
    return type(module).__name__
