"""One importance from all that was gathered of a weight.

Uses in several places and groups of a convolution are terms of their own. Their sum becomes a single product rows x A:
every row keeps its trace, and the shapes A_t / tr A_t are weighted by the energy of their rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from waterfill.calibration.moments import FLOOR, Moments, Slope, shared
from waterfill.importance import UNTESTED, Importance
from waterfill.network.layout import KERNEL, STACK, Layout


@dataclass
class _Sum:
    """The terms of a weight added up. rows: [rows] traces; shapes: A times the energy of its rows, of the first half,
    the second and both; energy, plain: of the rows, with and without the trace of A; seen: positions."""

    rows: Tensor
    shapes: list[Tensor]
    energy: float = 0.0
    plain: float = 0.0
    tested: bool = True
    seen: int = 0


def merge(terms: Sequence[Moments], layout: Layout, outputs: int, slope: Slope | None = None) -> Importance | None:
    """One importance for all terms of a weight; None if no output of the model depends on it.

    outputs: output rows that the sums of squares are spread over. slope: of the whole gradient;
    its total counts where a sample was not seen whole, as in the steps of a recurrent layer.
    """
    total = _Sum(torch.zeros(layout.matrix[0], dtype=torch.float64, device="cpu"), [])
    for term in terms:
        _add(total, term, outputs)
    if not total.energy > 0:
        return None
    scale = total.energy / total.plain  # the mean trace of A
    rows = total.rows / scale / (layout.count if layout.role == STACK else 1)
    if slope is not None:
        rows = rows * _correction(terms, layout, slope, total.energy * outputs)
    rows = shared(rows, outputs)
    first, second, both = (mean * (scale / total.energy) for mean in total.shapes)
    kernel = layout.kernel if layout.role == KERNEL else ()
    if both.ndim == 1:
        return Importance(rows, diagonal=both.clamp_min(FLOOR * float(both.mean())).float(), kernel=kernel)
    first, second, both = (_spread(mean, total.seen) for mean in (first, second, both))
    halves = (first.float(), second.float()) if total.tested else None
    return Importance(rows, gram=both.float(), kernel=kernel, damping=UNTESTED, halves=halves)


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
    total.seen += sum(term.near.counts)
    total.tested = total.tested and term.near.tested and (whole is None or term.whole.tested)
    means = whole or near
    share = (energy / _traces(means[2]).clamp_min(1e-300)).to(means[0])
    shapes = [(share.reshape(-1, *[1] * (mean.ndim - 1)) * mean).sum(0) for mean in means]
    total.shapes = [a + b for a, b in zip(total.shapes, shapes, strict=True)] if total.shapes else shapes


def _spread(shape: Tensor, seen: int) -> Tensor:
    """A shape of A, of fewer positions than columns beside one more that all columns share in.

    Otherwise errors in the directions that were never seen, most of them, would cost nothing at all.
    """
    if seen >= len(shape):
        return shape
    eye = torch.eye(len(shape), dtype=shape.dtype, device=shape.device)
    return (seen * shape + shape.diagonal().mean() * eye) / (seen + 1)


def _traces(mean: Tensor) -> Tensor:
    """The trace of each group's A, [groups] float64."""
    return (mean if mean.ndim == 2 else mean.diagonal(dim1=1, dim2=2)).double().sum(1)
