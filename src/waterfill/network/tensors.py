"""The named tensors of a module or of a state dict, tied ones once, and their roles in the module."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList

from waterfill.errors import BadInput
from waterfill.network.layout import KERNEL, MATRIX, STACK

_EXTRA_STATE = "_extra_state"  # as PyTorch names what `get_extra_state` gives


def tensors_of(model: "nn.Module | Mapping[str, Tensor]") -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Tensors by name, aliases of tied ones, and roles where a module knows them. Raises BadInput."""
    if not isinstance(model, nn.Module | Mapping):
        advice = "; of a checkpoint on disk compress_file makes a file" if isinstance(model, str | Path) else ""
        raise BadInput(f"a model is a module or a state dict, and this is a {type(model).__name__}{advice}")
    state = model.state_dict() if isinstance(model, nn.Module) else dict(model)
    if isinstance(model, nn.Module):
        state = {name: value for name, value in state.items() if not is_foreign(name, value)}
    for name, value in state.items():
        problem = _problem(name, value)
        if problem:
            raise BadInput(f"{name!r} {problem}")
    owners: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, value in state.items():
        key = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride(), value.is_conj(), value.is_neg())
        if value.numel() and key in owners:
            aliases[name] = owners[key]
        else:
            owners[key] = name
    tensors = {name: value for name, value in state.items() if name not in aliases}
    roles = roles_of(model) if isinstance(model, nn.Module) else {}
    roles |= {own: roles[alias] for alias, own in aliases.items() if roles.get(alias) == KERNEL}
    return tensors, aliases, roles


def owners_of(module: nn.Module) -> dict[str, str]:
    """By every name of a tensor the one that stands for it: the first of those that are tied, else its own."""
    tensors, aliases, _ = tensors_of(module)
    return {name: name for name in tensors} | aliases


def _problem(name: object, value: object) -> str | None:
    """Why an item of a state dict is no named tensor with values, or None."""
    if not isinstance(name, str):
        return "is no name of a tensor; names are text"
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, not a tensor; give a flat state dict"
    if is_lazy(value):
        return "has no shape yet: its module is lazy; run one batch through the model first"
    if value.is_meta:
        return "is on the meta device and has no values; load the weights first"
    if value.layout != torch.strided or value.is_quantized:
        return "is sparse or quantized by PyTorch; give a plain tensor: to_dense(), dequantize()"
    return None


def is_lazy(value: object) -> bool:
    """Whether a tensor has no shape until a first batch was run."""
    return isinstance(value, UninitializedParameter | UninitializedBuffer)


def is_foreign(name: str, value: object) -> bool:
    """Whether an item of a module's state is an extra state that is no tensor: only the module itself can make it."""
    return name.rpartition(".")[2] == _EXTRA_STATE and not isinstance(value, Tensor)


def foreign_names(module: nn.Module) -> list[str]:
    """The extra states of a module that are no tensors."""
    return [name for name, value in module.state_dict().items() if is_foreign(name, value)]


def constants_of(module: nn.Module) -> set[str]:
    """The tensors in a module's state that are neither parameters nor the statistics of a norm."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    norms = {prefix for prefix, child in module.named_modules() if _has_statistics(child)}
    return {name for name in module.state_dict() if name not in parameters and name.rpartition(".")[0] not in norms}


def _has_statistics(module: nn.Module) -> bool:
    """Whether a module is a norm that keeps statistics; frozen ones keep all their vectors as buffers."""
    return isinstance(getattr(module, "running_mean", None), Tensor)


def roles_of(module: nn.Module) -> dict[str, str]:
    """The roles of a module's tensors with three or more dimensions: kernels of convolutions, stacked matrices, or one
    matrix whose columns are pairs of inputs (bilinear)."""
    roles = {}
    modules = dict(module.named_modules())
    for prefix, child in modules.items():
        owner = child  # of parametrizations, the module whose weight they make
        if isinstance(child, ParametrizationList):
            owner = modules[prefix.rpartition("parametrizations.")[0].rstrip(".")]
        for name, value in child.named_parameters(recurse=False):
            if value.ndim >= 3:
                roles[f"{prefix}.{name}" if prefix else name] = _role_in(owner, value.ndim)
    return roles


def _role_in(module: nn.Module, dims: int) -> str:
    if isinstance(module, nn.modules.conv._ConvNd):
        return KERNEL
    return MATRIX if dims > 3 or isinstance(module, nn.Bilinear) else STACK
