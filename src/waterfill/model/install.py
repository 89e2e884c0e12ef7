"""Loads tensors into a module of the user's own class; an error says why they do not fit."""

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from waterfill.errors import BadInput, CorruptFile, Mismatch
from waterfill.network.channels.sizes import NOTE, held_by, shrink, sizes_problem
from waterfill.network.tensors import is_foreign, is_lazy

_SHOWN = 5
T = TypeVar("T")


@torch.no_grad()
def install(module: nn.Module, tensors: Mapping[str, Tensor], source: str = "the file") -> nn.Module:
    """Load tensors by name into a module, which is returned; parameters on the meta device get memory of their own.

    A name that the tensors lack is no mismatch where the module ties it to one that they have, or where it is an extra
    state that is no tensor, which stays. Warns where the module holds a narrower type, and where a part of it stays on
    the meta device. Raises Mismatch where names or shapes differ, or where values do not fit the module's types.
    """
    if not isinstance(module, nn.Module):
        found = f"the class {module.__name__}" if isinstance(module, type) else f"a {type(module).__name__}"
        raise BadInput(f"tensors are installed into a module, and this is {found}; give an instance of your network")
    check_fits(module, {name: _shape(value) for name, value in tensors.items()}, source)
    held = module.state_dict(keep_vars=True)
    kind = type(module).__name__
    state = dict(tensors) | tied_names(module, tensors)
    state |= {name: value for name, value in held.items() if name not in state and is_foreign(name, value)}
    fitting = {name: _as_held(name, value, held[name]) for name, value in state.items()}
    _warn_narrower(held, tensors)
    _materialize(module)
    module.load_state_dict(fitting, strict=True)
    torch.clear_autocast_cache()  # in a block of autocast, the module would go on with casts of its old weights
    left = [name for name, value in _all(module) if value.is_meta]
    if left:
        warnings.warn(
            f"{_listed(left)} of the {kind} stay on the meta device: {source} does not hold them; "
            "set them before the module runs",
            stacklevel=3,
        )
    return module


def check_fits(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], source: str = "the file") -> None:
    """Raises Mismatch unless tensors of these names and shapes are those of the module, as `install` has it."""
    held = module.state_dict(keep_vars=True)
    given = dict(shapes) | tied_names(module, shapes)
    given |= {name: () for name, value in held.items() if name not in given and is_foreign(name, value)}
    wanted = {name: given.get(name, ()) if is_lazy(value) else _shape(value) for name, value in held.items()}
    _check_names(wanted, given, (type(module).__name__, source))


def make_room(module: nn.Module, notes: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Take the channels out of a module that the network in a file lost, so that tensors of these shapes fit.

    notes: of the file. Raises Mismatch, the module as it was, where they do not fit even so; CorruptFile for notes that
    no writer would have written.
    """
    if NOTE not in notes or not isinstance(module, nn.Module):
        return
    sizes = notes[NOTE]
    if sizes_problem(sizes):
        raise CorruptFile("the sizes of layers are not what a writer would have written; the file is damaged")
    back = held_by(module.modules())
    try:
        check_fits(shrink(module, sizes), shapes)
    except Mismatch:
        back()
        raise


def tied_names(module: nn.Module, known: Mapping[str, T]) -> dict[str, T]:
    """Names that are not known and that a module ties to one that is, with what is known of that."""
    held = module.state_dict(keep_vars=True)
    named = {id(value): known[name] for name, value in held.items() if name in known}
    return {name: named[id(value)] for name, value in held.items() if name not in known and id(value) in named}


def converted(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in another type. Raises Mismatch, naming it, if a finite value leaves that type's range, or is no number
    that it has where it holds integers."""
    if value.dtype == dtype:
        return value
    parts = [value.real, value.imag] if value.is_complex() and not dtype.is_complex else [value]
    made = parts[0].to(dtype)
    if _surely_holds(dtype, parts[0]) and len(parts) == 1:
        return made
    if dtype.is_floating_point or dtype.is_complex:
        fits = _inside(parts[0], made) | ~_is_finite(parts[0])
    else:
        fits = made.to(parts[0].dtype) == parts[0]
    fits = fits & (parts[-1] == 0) if len(parts) > 1 else fits
    if not bool(fits.all()):
        odd = value[~fits].reshape(-1)[0].item()
        raise Mismatch(
            f"{name!r} holds {int((~fits).sum())} values, such as {odd:.6g}, that {_named(dtype)} cannot hold; "
            f"use {_named(value.dtype)} there"
        )
    return made


def _surely_holds(dtype: torch.dtype, values: Tensor) -> bool:
    """Whether all values lie in the range of a floating-point type, in one pass; False where it is not certain."""
    if not (dtype.is_floating_point and values.is_floating_point() and values.numel()):
        return False
    least, most = (float(edge) for edge in (values.float() if values.dtype.itemsize == 1 else values).aminmax())
    return torch.finfo(dtype).min <= least and most <= torch.finfo(dtype).max


def _inside(values: Tensor, made: Tensor) -> Tensor:
    """Whether each value was in the range of the type that it was made of; some types have no infinity to show it."""
    limits = torch.finfo(made.dtype)
    return _is_finite(made) & (values.abs().double() <= limits.max * (1 + limits.eps / 2))


def _is_finite(values: Tensor) -> Tensor:
    """Whether each value is finite, of float8 types too."""
    return torch.isfinite(values.float() if values.dtype.itemsize == 1 else values)


def _as_held(name: str, value: Any, held: Any) -> Any:
    """A value in the type of the tensor it will be copied into."""
    if not isinstance(value, Tensor) or not isinstance(held, Tensor) or is_lazy(held):
        return value
    return converted(name, value, held.dtype)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _check_names(
    held: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], names_of: tuple[str, str]
) -> None:
    kind, source = names_of
    missing = sorted(set(held) - set(given))
    extra = sorted(set(given) - set(held))
    both = [name for name in held if name in given]
    wrong = [f"{n}: module {list(held[n])}, file {list(given[n])}" for n in both if held[n] != given[n]]
    problems = [
        f"{label}: {_listed(names)}"
        for label, names in ((f"{source} lacks", missing), (f"{kind} lacks", extra), ("shapes differ", wrong))
        if names
    ]
    if problems:
        raise Mismatch(
            f"{source} does not fit a {kind}; {'; '.join(problems)}. Build the module it was compressed from"
        )


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}"


def _warn_narrower(in_module: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Warn of tensors that the module rounds to a narrower type."""
    pairs = {
        name: (value.dtype, in_module[name].dtype)
        for name, value in tensors.items()
        if value.is_floating_point() and isinstance(in_module[name], Tensor) and in_module[name].is_floating_point()
    }
    narrower = [name for name, (own, held) in pairs.items() if torch.finfo(held).eps > torch.finfo(own).eps]
    if narrower:
        own, held = (_named(dtype) for dtype in pairs[narrower[0]])
        warnings.warn(
            f"the module holds {held} where there is {own}, in {_listed(narrower)}: values are rounded to it",
            stacklevel=4,
        )


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _all(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers, those that are not in the state too."""
    return [*module.named_parameters(), *module.named_buffers()]


def _materialize(module: nn.Module) -> None:
    """Give what the module's state has on the meta device memory on the CPU, tied tensors once; values come later."""
    state = {id(value) for value in module.state_dict(keep_vars=True).values()}
    made: dict[int, Tensor] = {}
    for child in module.modules():
        for held, wrap in ((child._parameters, _parameter), (child._buffers, _buffer)):
            for key, value in held.items():
                if value is not None and value.is_meta and id(value) in state and not is_lazy(value):
                    made.setdefault(id(value), wrap(value))
                    held[key] = made[id(value)]  # type: ignore[assignment]  # of the kind that was there


def _buffer(value: Tensor) -> Tensor:
    return torch.empty_like(value, device="cpu")


def _parameter(value: Tensor) -> Tensor:
    return nn.Parameter(torch.empty_like(value, device="cpu"), requires_grad=value.requires_grad)
