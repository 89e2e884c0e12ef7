"""The optimal values on a given support: the kept entries compensate for the pruned ones."""

import torch
from torch import Tensor

from waterfill.importance import Importance

MOST_STEPS = 48
_SMALL = 1 << 16  # entries; larger weights with a Gram matrix of data are refitted in float32


def refit(
    target: Tensor, support: Tensor, importance: Importance, start: Tensor | None = None, steps: int = MOST_STEPS
) -> Tensor:
    """The matrix [rows, cols] on `support` (bool) nearest to `target` under the importance; `start`: a first guess.

    Row by row the normal equations A_SS v_S = (A w)_S, solved for all rows at once by conjugate gradients with the
    diagonal of A as preconditioner; every step lowers the distortion, so stopping early is safe. A support that all
    rows share takes one factorization instead.
    """
    data = importance.correlates(target.shape[1])
    wide = target.double() if target.numel() <= (_SMALL if data else 1 << 20) else target
    if data and len(support) and bool((support == support[0]).all()):
        solved = _solved(wide, support[0], importance)
        if solved is not None:
            return solved.to(target.dtype)
    near = 1e-6 if data and wide is target else 1e-10  # of the first error, squared, in the metric
    scale = importance.column_weights(target.shape[1]).to(wide).clamp_min(torch.finfo(torch.float32).tiny)
    fitted = (wide if start is None else start.to(wide)) * support
    residual = importance.times_gram(wide - fitted) * support
    direction = residual / scale
    energy = (residual * direction).sum(1)
    first = energy
    for _ in range(steps):
        if bool((energy <= near * first).all()):
            break
        image = importance.times_gram(direction) * support
        length = _ratio(energy, (direction * image).sum(1))
        fitted = fitted + length[:, None] * direction
        residual = residual - length[:, None] * image
        following = (residual * residual / scale).sum(1)
        direction = residual / scale + _ratio(following, energy)[:, None] * direction
        energy = following
    return fitted.to(target.dtype)


def _solved(target: Tensor, kept: Tensor, importance: Importance) -> Tensor | None:
    """The refit where all rows keep the columns `kept` [cols]; None where the Gram matrix has no inverse there."""
    assert importance.gram is not None
    kept = kept.nonzero()[:, 0]
    inner = importance.gram.to(target)[kept][:, kept]
    inner.diagonal().add_(importance.damping * float(importance.gram.diagonal().double().mean()))
    factor, info = torch.linalg.cholesky_ex(inner)
    if int(info):
        return None
    values = torch.cholesky_solve(importance.times_gram(target)[:, kept].T, factor).T
    return torch.zeros_like(target).index_copy_(1, kept, values)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and zero where b vanishes: a row that is solved stays as it is."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1), 0)
