"""The named tensors of a module or of a state dict, tied ones once, and what the module says of them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from waterfill.errors import BadInput
from waterfill.network.layout import KERNEL, MATRIX, STACK


def tensors_of(model: "nn.Module | Mapping[str, Tensor]") -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Tensors by name, aliases of tied ones, and roles where a module knows them. Raises BadInput."""
    state = model.state_dict() if isinstance(model, nn.Module) else dict(model)
    for name, value in state.items():
        problem = _problem(name, value)
        if problem:
            raise BadInput(f"{name!r} {problem}")
    seen: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, value in state.items():
        key = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if value.numel() and key in seen:
            aliases[name] = seen[key]
        else:
            seen[key] = name
    tensors = {name: value for name, value in state.items() if name not in aliases}
    return tensors, aliases, roles_of(model) if isinstance(model, nn.Module) else {}


def _problem(name: object, value: object) -> str | None:
    """Why an item of a state dict is no named tensor with values, or None."""
    if not isinstance(name, str):
        return "is no name of a tensor; names are text"
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, not a tensor; give a flat state dict"
    if value.is_meta:
        return "is on the meta device and has no values; load the weights first"
    if value.layout != torch.strided or value.is_quantized:
        return "is sparse or quantized by PyTorch; give a plain tensor: to_dense(), dequantize()"
    return None


def roles_of(module: nn.Module) -> dict[str, str]:
    """What the module says of tensors with three or more dimensions: kernels of convolutions, stacked matrices, or one
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
