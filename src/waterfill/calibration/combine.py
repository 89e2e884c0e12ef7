"""One importance of a weight from the sums of all its uses.

Each place where a weight is used, and each group of a convolution, is a term. Their sum is approximated by a single
product rows x A: every row keeps its trace, and A is the mean of the normalized A_t / tr A_t, weighted by the energy of
their rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from waterfill.calibration.moments import (
    FLOOR,
    UNMET,
    GradientSquares,
    Moments,
    unmet,
    warning_of_unmet,
    with_pseudo_sample,
)
from waterfill.importance import UNTESTED, Importance
from waterfill.network.layout import KERNEL, STACK, Layout

_RANGE = 1e-20, 1e20  # of a trace of A that float32 can hold as it is


@dataclass
class _Sum:
    """The sum of the terms of a weight.

    rows: [rows], energies times traces of A. grams: normalized A times the energy of its rows, of the first half of the
    inputs, the second and both. energy: sum of `rows`; plain: the same without the traces. tested: whether both halves
    hold inputs. positions: how many were sampled. measured: `rows` without floors.
    """

    rows: Tensor
    grams: list[Tensor]
    energy: float = 0.0
    plain: float = 0.0
    tested: bool = True
    positions: int = 0
    measured: Tensor | None = None


def merge(
    terms: Sequence[Moments], layout: Layout, outputs: int, gradient: GradientSquares | None = None
) -> tuple[Importance, str] | None:
    """One importance for all terms of a weight, and a warning of rows and columns that were always zero, or "".

    None if no output of the model depends on the weight.
    outputs: output rows that the sums of squares are divided by. gradient: sums of the weight's whole gradient, whose
    total is used where samples went through the weight in pieces, as in the steps of a recurrent layer.
    """
    total = _Sum(torch.zeros(layout.matrix[0], dtype=torch.float64, device="cpu"), [])
    for term in terms:
        _add(total, term, outputs)
    if not total.energy > 0:
        return None
    scale = total.energy / total.plain  # the mean trace of A
    scale = scale if _RANGE[0] < scale < _RANGE[1] else 1.0
    rows = total.rows / scale / (layout.count if layout.role == STACK else 1)
    if gradient is not None:
        rows = rows * _correction(terms, layout, gradient, total.energy * outputs)
    rows = with_pseudo_sample(rows, outputs)
    means = [mean * (scale / total.energy) for mean in total.grams]
    kernel = layout.kernel if layout.role == KERNEL else ()
    assert total.measured is not None
    diagonal = (means[2] if means[2].ndim == 1 else means[2].diagonal()).clone()
    warning = warning_of_unmet(total.measured, diagonal)
    if means[2].ndim == 1:
        cols = unmet(diagonal, diagonal)
        return Importance(rows, diagonal=cols.clamp_min(FLOOR * float(cols.mean())).float(), kernel=kernel), warning
    return with_grams(Importance(rows, kernel=kernel), means, total.positions, total.tested), warning


def with_grams(importance: Importance, means: Sequence[Tensor], positions: int, tested: bool) -> Importance:
    """The importance with a Gram matrix, of inputs of which so many were seen.

    means: A of the first half of the inputs, the second and both, [cols, cols]. tested: whether neither half is empty.
    """
    diagonal = means[2].diagonal().clone()
    first, second, both = (_shrunk(_with_costs(mean, diagonal), positions) for mean in means)
    halves = (first.float(), second.float()) if tested else None
    return replace(importance, gram=both.float(), damping=UNTESTED, halves=halves)


def _correction(terms: Sequence[Moments], layout: Layout, gradient: GradientSquares, energy: float) -> float:
    """The factor that gives the rows the energy of the whole gradient.

    1 where each input of a batch went through the weight once and as a whole: then the sum is exact.
    """
    used = sum(term.calls * (term.stop - term.start) for term in terms) / layout.matrix[0]
    once = used <= gradient.count / gradient.probes
    whole = all(term.aligned and term.exact is not None for term in terms)
    return 1.0 if gradient.total == 0 or (once and whole) else gradient.total / gradient.probes / energy


def _add(total: _Sum, term: Moments, outputs: int) -> None:
    """Add one use: rows += E|d_o|^2; A += energy of the rows times A_t / tr A_t, group by group."""
    by_position = term.by_position.means
    if by_position is None or term.energy is None:
        return
    energy, least = term.energy, term.floor
    if least and bool((nonzero := energy > 0).any()):
        least = max(least, UNMET * float(energy[nonzero].mean()))
    weights = energy.clamp_min(least) / (outputs * term.repeats)
    traces = _traces(by_position[2]) * (term.unit or 1.0) ** 2
    rows = weights * traces.repeat_interleave(len(weights) // term.groups)
    by_sample = term.by_sample.means
    if by_sample is not None and term.exact is not None:
        rows = term.exact / (outputs * term.repeats)
    energy = rows.reshape(term.groups, -1).sum(1)
    if not float(energy.sum()) > 0:
        return
    if total.measured is None:
        total.measured = torch.zeros_like(total.rows)
    total.measured[term.start : term.stop] += rows * (term.energy > 0)
    total.rows[term.start : term.stop] += rows
    total.energy += float(energy.sum())
    total.plain += float((energy / traces.clamp_min(1e-300)).sum())
    total.positions += sum(term.by_position.counts)
    total.tested = total.tested and term.by_position.tested and (by_sample is None or term.by_sample.tested)
    means = by_sample or by_position
    share = (energy / _traces(means[2]).clamp_min(1e-300)).to(means[0])
    grams = [(share.reshape(-1, *[1] * (mean.ndim - 1)) * mean).sum(0) for mean in means]
    total.grams = [a + b for a, b in zip(total.grams, grams, strict=True)] if total.grams else grams


def _shrunk(gram: Tensor, positions: int) -> Tensor:
    """A shrunk toward a multiple of the identity where it was measured on fewer positions than it has columns.

    Otherwise errors in the directions that were not sampled, most of them, would cost nothing.
    """
    if positions >= len(gram):
        return gram
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return (positions * gram + gram.diagonal().mean() * eye) / (positions + 1)


def _with_costs(gram: Tensor, energy: Tensor) -> Tensor:
    """A with a diagonal of `unmet` costs at the columns of zero energy [cols]."""
    filled = gram.clone()
    filled.diagonal().copy_(unmet(gram.diagonal(), energy))
    return filled


def _traces(mean: Tensor) -> Tensor:
    """The trace of each group's A, [groups] float64."""
    return (mean if mean.ndim == 2 else mean.diagonal(dim1=1, dim2=2)).double().sum(1)
