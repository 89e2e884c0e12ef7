"""One importance from all that was gathered of a weight.

Uses in several places and groups of a convolution are terms of their own. Their sum becomes a single product rows x A:
every row keeps its trace, and the shapes A_t / tr A_t are weighted by the energy of their rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from waterfill.calibration.moments import FLOOR, UNMET, GradientSquares, Moments, shared, unmet, words_of_unmet
from waterfill.importance import UNTESTED, Importance
from waterfill.network.layout import KERNEL, STACK, Layout

_RANGE = 1e-20, 1e20  # of a trace of A that float32 can hold as it is


@dataclass
class _Sum:
    """The terms of a weight added up. rows: [rows] traces; shapes: A times the energy of its rows, of the first half,
    the second and both; energy, plain: of the rows, with and without the trace of A; seen: positions; met: by row, what
    came in, without floors."""

    rows: Tensor
    shapes: list[Tensor]
    energy: float = 0.0
    plain: float = 0.0
    tested: bool = True
    seen: int = 0
    met: Tensor | None = None


def merge(
    terms: Sequence[Moments], layout: Layout, outputs: int, slope: GradientSquares | None = None
) -> tuple[Importance, str] | None:
    """One importance for all terms of a weight, and the rows and columns that met nothing, in words; None if no output
    of the model depends on the weight.

    outputs: output rows that the sums of squares are spread over. slope: of the whole gradient;
    its total counts where a sample was not seen whole, as in the steps of a recurrent layer.
    """
    total = _Sum(torch.zeros(layout.matrix[0], dtype=torch.float64, device="cpu"), [])
    for term in terms:
        _add(total, term, outputs)
    if not total.energy > 0:
        return None
    scale = total.energy / total.plain  # the mean trace of A
    scale = scale if _RANGE[0] < scale < _RANGE[1] else 1.0
    rows = total.rows / scale / (layout.count if layout.role == STACK else 1)
    if slope is not None:
        rows = rows * _correction(terms, layout, slope, total.energy * outputs)
    rows = shared(rows, outputs)
    first, second, both = (mean * (scale / total.energy) for mean in total.shapes)
    kernel = layout.kernel if layout.role == KERNEL else ()
    silent = (both if both.ndim == 1 else both.diagonal()).clone()
    assert total.met is not None
    told = words_of_unmet(total.met, silent)
    if both.ndim == 1:
        cols = unmet(both, both)
        return Importance(rows, diagonal=cols.clamp_min(FLOOR * float(cols.mean())).float(), kernel=kernel), told
    first, second, both = (_spread(_woken(mean, silent), total.seen) for mean in (first, second, both))
    halves = (first.float(), second.float()) if total.tested else None
    return Importance(rows, gram=both.float(), kernel=kernel, damping=UNTESTED, halves=halves), told


def _correction(terms: Sequence[Moments], layout: Layout, slope: GradientSquares, energy: float) -> float:
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
    energy, least = term.energy, term.floor
    if least and bool((met := energy > 0).any()):
        least = max(least, UNMET * float(energy[met].mean()))
    weights = energy.clamp_min(least) / (outputs * term.repeats)
    traces = _traces(near[2]) * (term.unit or 1.0) ** 2
    rows = weights * traces.repeat_interleave(len(weights) // term.groups)
    whole = term.whole.means
    if whole is not None and term.exact is not None:
        rows = term.exact / (outputs * term.repeats)
    energy = rows.reshape(term.groups, -1).sum(1)
    if not float(energy.sum()) > 0:
        return
    if total.met is None:
        total.met = torch.zeros_like(total.rows)
    total.met[term.start : term.stop] += rows * (term.energy > 0)
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


def _woken(shape: Tensor, energy: Tensor) -> Tensor:
    """A shape of A with a cost for the columns that were silent, of these energies in all."""
    woken = shape.clone()
    woken.diagonal().copy_(unmet(shape.diagonal(), energy))
    return woken


def _traces(mean: Tensor) -> Tensor:
    """The trace of each group's A, [groups] float64."""
    return (mean if mean.ndim == 2 else mean.diagonal(dim1=1, dim2=2)).double().sum(1)
