"""Whether one tensor is computed from another as multiples of its rows: casts, scaled weights, weights made of a
direction and a length, standardized ones. It is decided by the numbers, whatever code computed them."""

import torch
from torch import Tensor

_UNEXPLAINED_ENERGY = 1e-4  # share that no multiple explains: the rounding of a cast, not that of four bits


@torch.no_grad()
def multiple_of_rows(weight: Tensor, result: Tensor, matrix: tuple[int, int]) -> tuple[Tensor, bool] | None:
    """Factors [rows] with result = factors * weight, row by row, and whether a number was added to each row besides.

    matrix: rows and columns of the weight, or of each matrix where it is a stack of several, which share their factors.
    None where the one is not so computed from the other.
    """
    rows, cols = matrix
    if is_part(weight, result):
        return weight.new_ones(rows, dtype=torch.float32), False
    w, r = (value.detach().reshape(-1, cols).float() for value in (weight, result))
    for moved in (False, True):
        if moved:
            w, r = w - w.mean(1, keepdim=True), r - r.mean(1, keepdim=True)
        energy, along = w.square().sum(1), (w * r).sum(1)
        factors = torch.where(energy > 0, along / energy, torch.nan)
        left = (r - factors.nan_to_num()[:, None] * w).square().sum()
        if bool(left <= _UNEXPLAINED_ENERGY * r.square().sum()) and bool(along.any()):
            factors = factors.nan_to_num(float(factors.nanmean()))  # unknown for a row of zeros
            return factors.reshape(-1, rows).square().mean(0).sqrt(), moved
        if cols < 3:  # any two numbers are a multiple of any others, moved
            return None
    return None


def is_part(weight: Tensor, result: Tensor) -> bool:
    """Whether some entries are those of a weight, to the bit, and all others are zero: hidden by a mask."""
    shown = result != 0
    hidden = torch.where(shown, 0, weight)
    if not bool((hidden < 0).any() and (hidden > 0).any()):  # nothing, or what a rectifier would hide
        return False
    return bool(shown.any()) and torch.equal(result, torch.where(shown, weight, 0))
