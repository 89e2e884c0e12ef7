"""The moments of the inputs of a block's weights: what errors cost, and targets that make up for earlier errors."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from waterfill.calibration.combine import with_grams
from waterfill.calibration.moments import UNMET
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.blocks.measured import Measured, with_energy
from waterfill.compression.steps.compensate import DriftMoments
from waterfill.importance import Importance

_BATCHES_HALVED = 4  # fewer batches are each cut in two, so that there are two halves of the inputs


class Moments(Protocol):
    """The moments of the inputs of a weight."""

    def costed(self, weight: Weight, measured: Measured) -> Weight:
        """The weight with the costs of its errors. measured: of the first pass."""

    def aimed(self, weight: Weight) -> Weight:
        """The weight with the target that makes up for the errors before it."""


@dataclass(frozen=True, eq=False)
class GroupMoments:
    """Those of weights that have the same inputs. rows: of the gaps that were added, none or their number."""

    sums: DriftMoments = field(default_factory=DriftMoments)
    rows: list[int] = field(default_factory=list)

    def add(self, inputs: tuple[Tensor, Tensor], half: int | None, gap: Tensor | None = None) -> None:
        """Add the inputs [..., cols] of a batch in the original and in the compressed network.

        half: of the inputs, that the batch belongs to; None to cut it in two. gap: [..., rows], what the hidden state
        lacks that the outputs of the weight are added to; given for every batch or for none.
        """
        before, after = (x.reshape(-1, x.shape[-1]).float() for x in inputs)
        lacking = None if gap is None else gap.reshape(-1, gap.shape[-1]).float()
        if lacking is not None:
            self.rows[:] = [lacking.shape[1]]
        for i, part in _parts(len(after), half).items():
            now = after[part]
            if lacking is not None:
                drift = lacking[part]
            else:
                drift = before[part] - now if before.shape == after.shape else torch.zeros_like(now)
            self.sums.add_to(i, (now.mT @ now)[None], (drift.mT @ now)[None], len(now))

    def costed(self, weight: Weight, measured: Measured) -> Weight:
        """With the Gram matrix of the inputs in the compressed network, where it was not measured before."""
        if measured.energy is None:
            assert measured.importance is not None
            return replace(weight, importance=partial(_same, measured.importance))
        gram = _of_inputs(self.sums.own, self.sums.counts)
        plain = Importance(measured.energy / weight.layout.matrix[1])  # no input came in this pass
        return replace(weight, importance=partial(_same, with_energy(measured.energy, gram) if gram else plain))

    def aimed(self, weight: Weight) -> Weight:
        """Near in its outputs to what they were, or, where they are added to the hidden state, in that state."""
        if weight.kept or not self.sums.own:
            return weight
        matrix = weight.layout.split(weight.tensor())[0].to(self.sums.own[0].device)
        # where the gap is known the drift is that of the outputs already
        drifting = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device) if self.rows else matrix
        step = self.sums.step(drifting[None])[0]
        if not bool(torch.isfinite(step).all()):
            return weight
        return replace(weight, load=partial(_same, weight.layout.join([(matrix + step).cpu()])))


@dataclass(frozen=True, eq=False)
class StackMoments:
    """Those of stacked matrices, such as the experts of a layer, by their number."""

    each: dict[int, DriftMoments] = field(default_factory=dict)

    def add(self, number: int, inputs: Tensor, half: int | None) -> None:
        """Add the inputs [..., cols] of one of the matrices for a batch in the compressed network."""
        after = inputs.reshape(-1, inputs.shape[-1]).float()
        sums = self.each.setdefault(number, DriftMoments())
        for i, part in _parts(len(after), half).items():
            own = (after[part].mT @ after[part])[None]
            sums.add_to(i, own, torch.zeros(1, 1, 1, device=own.device, dtype=own.dtype), len(after[part]))

    def costed(self, weight: Weight, measured: Measured) -> Weight:
        """With an importance for each matrix: of its own inputs, and, where these are few, of those of all.

        As many positions with the mean of all as there are columns count beside its own. The cost of its errors is in
        proportion to the energy of its inputs: an expert that few tokens are given to costs little.
        """
        assert measured.importance is not None
        made = replace(weight, importance=partial(_same, measured.importance))
        known = [sums for sums in self.each.values() if sums.count]
        if measured.importance.gram is None or not known:
            return made
        energy = measured.importance.rows.double() * float(measured.importance.gram.diagonal().double().sum())
        owns, counts = ([sum(getattr(s, key)[i] for s in known) for i in range(2)] for key in ("own", "counts"))
        cols = weight.layout.matrix[1]
        means = [own / max(1, count) for own, count in zip(owns, counts, strict=True)]
        grams: dict[int, Importance] = {}
        for number in range(weight.layout.count):
            sums = self.each.get(number, DriftMoments())
            mixed = [means[i] * cols + (sums.own[i] if sums.own else 0.0) for i in range(2)]
            gram = _of_inputs(mixed, [count + cols for count in sums.counts])
            if gram is None:
                return made
            grams[number] = gram
        weights = {
            i: _positions(self.each.get(i), sum(counts) / len(grams)) * _trace(gram) for i, gram in grams.items()
        }
        share = len(grams) / sum(weights.values())
        found = {i: with_energy(energy * weights[i] * share, gram) for i, gram in grams.items()}
        return replace(made, each=found.__getitem__)

    def aimed(self, weight: Weight) -> Weight:
        """As it is: an expert may be given other tokens than in the original network."""
        return weight


def without_inputs(weight: Weight, measured: Measured) -> Weight:
    """A weight that no input came to in the second pass, with what the first found of it."""
    return GroupMoments().costed(weight, measured)


def half_of(batch: int, batches: int) -> int | None:
    """The half of the inputs that a batch belongs to; None where it is cut in two."""
    return batch % 2 if batches >= _BATCHES_HALVED else None


def _parts(positions: int, half: int | None) -> Mapping[int, slice]:
    cut = positions // 2
    return {0: slice(None, cut), 1: slice(cut, None)} if half is None else {half: slice(None)}


def _positions(sums: DriftMoments | None, mean: float) -> float:
    """Positions of a matrix, and some that it may be given by other inputs."""
    return (0 if sums is None else sums.count) + UNMET * mean


def _trace(importance: Importance) -> float:
    assert importance.gram is not None
    return float(importance.gram.diagonal().double().sum())


def _of_inputs(own: list[Tensor], counts: list[int]) -> Importance | None:
    """The importance with equal rows and this Gram matrix; None without inputs, or where all are zero.

    own: sums [1, cols, cols] of two halves. counts: their positions.
    """
    if not sum(counts):
        return None
    means = [own[i][0] / max(1, counts[i]) for i in range(2)] + [(own[0][0] + own[1][0]) / sum(counts)]
    if not float(means[2].diagonal().sum()) > 0:
        return None
    return with_grams(Importance(), [mean.cpu() for mean in means], sum(counts), 0 not in counts)


def _same(value: Any) -> Any:
    return value
