"""Exact second moments of the gradient of a weight, sample by sample.

The gradient of row o in sample n is d_no = sum over positions p of g_nop x_np. Where inputs or gradients of neighboring
positions correlate, as before a global average, its square is not the sum of squares g^2 x x^T: treating positions as
independent was measured to be wrong by factors from 1/6 to 3 between the layers of one network, and by up to 0.8 bit
in the shape of A. So the rows are sum_n |d_no|^2, and A is sum_no w_o d_no^T d_no with w_o = 1 / energy of row o.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_AT_ONCE = 1 << 24  # entries of the columns of some samples
_LEAST_ENERGY = 0.01  # of the mean energy; rows of less are weighted as if they had this much

Columns = Callable[[slice], Tensor]
"""(samples) -> their columns [samples, groups, cols, positions], float32."""


def row_weights(gradients: Tensor) -> Tensor:
    """The inverse energy of each row, [groups, rows], of gradients [samples, groups, rows, positions]."""
    energy = gradients.square().sum((0, 3))
    least = (_LEAST_ENERGY * energy.mean()).clamp_min(torch.finfo(torch.float32).tiny)
    return 1 / energy.clamp_min(float(least))


def moments(gradients: Tensor, columns: Columns, cols: int, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted Gram matrix [groups, cols, cols] and the energy of each row [groups * rows].

    gradients: [samples, groups, rows, positions]. weights: [groups, rows].
    """
    samples, groups, rows, positions = gradients.shape
    gram = torch.zeros(groups, cols, cols, dtype=torch.float32, device=gradients.device)
    energy = torch.zeros(groups, rows, dtype=torch.float64, device=gradients.device)
    step = max(1, _AT_ONCE // max(1, groups * cols * positions, rows * groups * cols if positions >= rows else 0))
    for start in range(0, samples, step):
        some = slice(start, min(start + step, samples))
        left, right = _factors(gradients[some], columns(some).mT, weights, energy)
        gram += left.transpose(0, 1).reshape(groups, -1, cols).mT @ right.transpose(0, 1).reshape(groups, -1, cols)
    return gram, energy.reshape(-1)


def _factors(g: Tensor, x: Tensor, weights: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """L and R with sum L^T R = sum_no w_o d_no^T d_no, both [samples, groups, any, cols]; x is [..., positions, cols].

    Adds |d_no|^2 to the energy. Computed by rows or by positions, whichever takes fewer operations.
    """
    if g.shape[3] >= g.shape[2]:
        own = g @ x
        energy += own.square().sum((0, 3))
        return own * weights[:, :, None], own
    energy += ((g @ (x @ x.mT)) * g).sum((0, 3))
    return (g.mT @ (g * weights[:, :, None])) @ x, x
