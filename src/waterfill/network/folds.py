"""The tensors of a batch norm and of the layer before it after folding.

w' = w * s and b' = beta + (b - mean) * s with s = gamma / sqrt(var + eps), per output channel.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from waterfill.storage.folds import Fold

TENSORS = ("weight", "bias", "running_mean", "running_var")


@torch.no_grad()
def folded_tensors(tensors: Mapping[str, Tensor], fold: Fold) -> dict[str, Tensor]:
    """The tensors of the layer and the norm after folding, by name; those that are missing before stay missing.

    The norm keeps weight 1, mean 0, variance 1 - eps and, as its bias, the shift if the layer has none to take it; its
    mean does if it has none either. The layer's weight may be left out; then it is not computed.
    """
    norm = {name: tensors[own] for name in TENSORS if (own := f"{fold.norm}.{name}") in tensors}
    layer = {name: tensors[own] for name in TENSORS[:2] if (own := f"{fold.layer}.{name}") in tensors}
    scale = (norm["running_var"].double() + fold.eps).rsqrt()
    scale = scale * norm["weight"].double() if "weight" in norm else scale
    bias = layer["bias"].double() if "bias" in layer else 0.0
    shift = (bias - norm["running_mean"].double()) * scale + (norm["bias"].double() if "bias" in norm else 0.0)
    after = {f"{fold.norm}.running_var": torch.full_like(norm["running_var"], 1 - fold.eps)}
    after[f"{fold.norm}.running_mean"] = torch.zeros_like(norm["running_mean"])
    for name, constant in (("weight", 1.0), ("bias", 0.0)):
        if name in norm:
            after[f"{fold.norm}.{name}"] = torch.full_like(norm[name], constant)
    if "weight" in layer:
        weight = layer["weight"]
        shape = [1] * weight.ndim
        shape[1 if fold.transposed else 0] = -1
        after[f"{fold.layer}.weight"] = (weight.double() * scale.reshape(shape)).to(weight.dtype)
    if "bias" in layer:
        after[f"{fold.layer}.bias"] = shift.to(layer["bias"].dtype)
    elif "bias" in norm:
        after[f"{fold.norm}.bias"] = shift.to(norm["bias"].dtype)
    else:
        after[f"{fold.norm}.running_mean"] = (-shift).to(norm["running_mean"].dtype)
    return after


def touched(fold: Fold) -> list[str]:
    """The names of all tensors that a fold may change."""
    return [f"{fold.layer}.{name}" for name in TENSORS[:2]] + [f"{fold.norm}.{name}" for name in TENSORS]
