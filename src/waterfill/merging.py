"""One importance from all that was gathered of a weight, its shape and its damping chosen by what was held out.

Uses in several places and groups of a convolution are terms of their own. Their sum becomes a single product rows x A:
every row keeps its trace, and the shapes A_t / tr A_t are weighted by the energy of their rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from waterfill.importance import Importance
from waterfill.layout import KERNEL, STACK, Layout
from waterfill.moments import FLOOR, Moments, Slope

DAMPINGS = tuple(10.0 ** (k / 2) for k in range(-5, 1))
"""What is tried, relative to the mean diagonal. Less is never safe: what was silent in all inputs seen, both halves of
them, may speak in the next (ResNet-20 at 1.6 bits: 91.4 % with at least 10^-3, 91.0 % with 10^-6)."""
SHARES = (0.0, 0.5, 1.0)
"""What is tried, of the gradients by samples in A; the rest is inputs by positions, biased but of less variance."""
UNTESTED = 0.01
"""The damping where too little was seen to hold some out."""
_SMALL = 1024  # columns up to which eigenvalues are computed
_VECTORS = 64


@dataclass
class _Sum:
    """The terms of a weight added up. rows: [rows] traces; near, whole: A times the energy of its rows, of the first
    half, the second and both; energy, plain: of the rows, with and without the trace of A."""

    rows: Tensor
    near: list[Tensor]
    whole: list[Tensor]
    energy: float = 0.0
    plain: float = 0.0
    tested: bool = True


def merge(terms: Sequence[Moments], layout: Layout, outputs: int, slope: Slope | None = None) -> Importance | None:
    """One importance for all terms of a weight; None if no output of the model depends on it.

    outputs: output rows that the sums of squares are spread over. slope: of the whole gradient;
    its total counts where a sample was not seen whole, as in the steps of a recurrent layer.
    """
    total = _Sum(torch.zeros(layout.matrix[0], dtype=torch.float64), [], [])
    for term in terms:
        _add(total, term, outputs)
    if not total.energy > 0:
        return None
    scale = total.energy / total.plain  # the mean trace of A
    rows = total.rows / scale / (layout.count if layout.role == STACK else 1)
    if slope is not None:
        rows = rows * _correction(terms, layout, slope, total.energy * outputs)
    rows = rows.clamp_min(FLOOR * float(rows.mean()))
    near, whole = ([mean * (scale / total.energy) for mean in means] for means in (total.near, total.whole))
    kernel = layout.kernel if layout.role == KERNEL else ()
    if near[0].ndim == 1:
        return Importance(rows, diagonal=near[2].clamp_min(FLOOR * float(near[2].mean())).float(), kernel=kernel)
    share, damping = best_shape(near, whole) if total.tested else (0.5, UNTESTED)
    gram = (1 - share) * near[2] + share * whole[2]
    return Importance(rows, gram=gram.float(), kernel=kernel, damping=damping)


def _correction(terms: Sequence[Moments], layout: Layout, slope: Slope, energy: float) -> float:
    """What the rows are to be multiplied by so that they hold the energy of the whole gradient.

    Nothing where each input of a batch went through the weight once and as a whole: then the sum is exact.
    """
    used = sum(term.calls * (term.stop - term.start) for term in terms) / layout.matrix[0]
    once = used <= slope.count / slope.probes
    whole = all(term.aligned and term.exact is not None for term in terms)
    return 1.0 if slope.total == 0 or (once and whole) else slope.total / slope.probes / energy


def _add(total: _Sum, term: Moments, outputs: int) -> None:
    """Add a term, its rows and its shapes, each group's of trace one times the energy of its rows."""
    near = term.near.means
    if near is None or term.energy is None:
        return
    weights = term.energy.clamp_min(term.floor) / (outputs * term.repeats)
    traces = _traces(near[2])
    rows = weights * traces.repeat_interleave(len(weights) // term.groups)
    whole = term.whole.means
    if whole is not None and term.exact is not None:
        rows = term.exact / (outputs * term.repeats)
    energy = rows.reshape(term.groups, -1).sum(1)
    if not float(energy.sum()) > 0:
        return
    total.rows[term.start : term.stop] += rows
    total.energy += float(energy.sum())
    total.plain += float((energy / traces.clamp_min(1e-300)).sum())
    total.tested = total.tested and term.near.tested and (whole is None or term.whole.tested)
    for halves, means in ((total.near, near), (total.whole, whole or near)):
        share = (energy / _traces(means[2]).clamp_min(1e-300)).to(means[0])
        shapes = [(share.reshape(-1, *[1] * (mean.ndim - 1)) * mean).sum(0) for mean in means]
        halves[:] = [a + b for a, b in zip(halves, shapes, strict=True)] if halves else shapes


def _traces(mean: Tensor) -> Tensor:
    """The trace of each group's A, [groups] float64."""
    return (mean if mean.ndim == 2 else mean.diagonal(dim1=1, dim2=2)).double().sum(1)


def best_shape(near: Sequence[Tensor], whole: Sequence[Tensor]) -> tuple[float, float]:
    """The share of `whole` in A and the damping, relative to the mean diagonal, at which feedback does best.

    near, whole: two halves each, and more that is not looked at. With A_0 + d = T^T T and steps in proportion to
    1 / T_ii, feedback leaves errors E with white T E^T (DESIGN 6.3), so at equal rate the distortion on the other half
    is tr(W_1 (A_0 + d)^-1) * det(A_0 + d)^(1/n): it is least over `SHARES` and `DAMPINGS`, both halves in turn.
    """
    best = (math.inf, 0.5, UNTESTED)
    for share in SHARES if whole[0] is not near[0] else (0.0,):
        mixed = [(1 - share) * a + share * b for a, b in zip(near[:2], whole[:2], strict=True)]
        curve = held_out(mixed[0], whole[1]) + held_out(mixed[1], whole[0])
        k = int(curve.argmin())
        if math.isfinite(curve[k]) and float(curve[k]) < best[0]:
            best = (float(curve[k]), share, DAMPINGS[k])
    return best[1:]


def held_out(fitted: Tensor, held: Tensor) -> Tensor:
    """The logarithm of the distortion on the held-out half at each of `DAMPINGS`; infinite where it has none."""
    curve = _spectral(fitted, held) if len(fitted) <= _SMALL else _sampled(fitted, held)
    return torch.nan_to_num(curve.double(), nan=math.inf, posinf=math.inf, neginf=math.inf)


def _spectral(fitted: Tensor, held: Tensor) -> Tensor:
    """By the eigenvalues of the fitted half."""
    values, vectors = torch.linalg.eigh(fitted.double())
    held_in = ((held.double() @ vectors) * vectors).sum(0)
    damped = [values.clamp_min(0) + damping * float(values.mean()) for damping in DAMPINGS]
    return torch.stack([(held_in / v).sum().log() + v.log().mean() for v in damped])


def _sampled(fitted: Tensor, held: Tensor) -> Tensor:
    """With a Cholesky factor for each damping and the trace from random signs (Hutchinson's estimate)."""
    signs = torch.randint(0, 2, (len(fitted), _VECTORS), generator=torch.Generator().manual_seed(0))
    signs, held = signs.to(fitted) * 2 - 1, held.to(fitted)
    after, mean, found = held @ signs, float(fitted.diagonal().mean()), []
    damped = fitted.clone()
    for damping in DAMPINGS:
        damped.diagonal().copy_(fitted.diagonal() + damping * mean)
        factor, info = torch.linalg.cholesky_ex(damped)
        trace = (torch.cholesky_solve(signs, factor) * after).sum() / _VECTORS
        value = trace.log() + 2 * factor.diagonal().log().mean()
        found.append(torch.full((), math.inf) if int(info) else value)
    return torch.stack([value.double() for value in found])
