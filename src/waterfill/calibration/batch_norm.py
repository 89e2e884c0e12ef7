"""Gradients with respect to the running statistics of batch norms, which autograd does not give.

y = (x - m) / s * w + b with s^2 = v + eps: so dL/dm = -w / s * dL/db and dL/dv = -w / (2 s^2) * dL/dw.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True, eq=False)
class Derived:
    """A gradient that is a multiple, entry by entry, of that of the parameter `source`."""

    source: str
    factor: Tensor


def statistics(model: nn.Module) -> dict[str, Derived]:
    """By the names of running means and variances: their gradients, for batch norms that have weights and biases."""
    gradients = {}
    for prefix, module in model.named_modules():
        if not isinstance(module, _BatchNorm) or not module.affine or module.running_var is None:
            continue
        at = f"{prefix}." if prefix else ""
        with torch.no_grad():
            square = module.running_var.float() + module.eps
            weight = module.weight.float()
            gradients[f"{at}running_mean"] = Derived(f"{at}bias", -weight / square.sqrt())
            gradients[f"{at}running_var"] = Derived(f"{at}weight", -weight / (2 * square))
    return gradients
