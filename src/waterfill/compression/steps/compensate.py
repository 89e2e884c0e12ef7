"""Targets that compensate for the changed inputs of a weight after the layers before it are compressed.

Where a compressed network gives a layer x' instead of x, the matrix nearest to W in outputs is not W but
W + W E[(x - x') x'^T] E[x' x'^T]^-1 (GPTAQ, arXiv 2504.02692). The size of that step is cross-validated on two halves
of the inputs.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.calibration.calibrate import MEMORY
from waterfill.compression.steps.recorded import InputSource, Place, Recorded, StagedInputs, by_place
from waterfill.network.layout import Layout
from waterfill.network.running.batches import spread
from waterfill.network.running.forward import Forward
from waterfill.network.running.resume import Ran

_BATCHES_PER_STAGE = 64  # batches run through both networks for each stage
_RIDGE = 1e-2  # relative to the mean diagonal; the step size is cross-validated besides
_PRIOR_COLUMNS = 8  # pseudo-columns for which a step of zero is best


class _Products:
    """Products of the inputs of both networks, of a batch; made once where several weights have the same inputs."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int, Place], list[tuple[Tensor, Tensor, int]]] = {}

    def of(self, original: Recorded, compressed: Recorded) -> list[tuple[Tensor, Tensor, int]]:
        """x' x'^T and (x - x') x'^T, [groups, cols, cols], of each half of the positions, and how many these are."""
        key = id(original.x), id(compressed.x), (0, 0, original.place[2])
        if original.geometry is not None or key not in self._made:
            # the same positions of both, sampled anew for each weight
            before, after = (one.columns(torch.Generator("cpu").manual_seed(0)) for one in (original, compressed))
            self._made[key] = list(_halves(before, after)) if before.shape == after.shape else []
        return self._made[key]


def _halves(original: Tensor, compressed: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
    cut = original.shape[2] // 2
    for part in (slice(None, cut), slice(cut, None)):
        now = compressed[:, :, part]
        yield torch.bmm(now, now.mT), torch.bmm(original[:, :, part] - now, now.mT), now.shape[2]


@dataclass
class DriftMoments:
    """Sums of x' x'^T and (x - x') x'^T over the positions of each half, [groups, cols, cols], and their counts."""

    own: list[Tensor] = field(default_factory=list)
    drift: list[Tensor] = field(default_factory=list)
    counts: list[int] = field(default_factory=lambda: [0, 0])

    @property
    def count(self) -> int:
        """Positions of both halves."""
        return sum(self.counts)

    def add(self, halves: Iterable[tuple[Tensor, Tensor, int]]) -> None:
        """Add the products of both halves, and their counts."""
        for half, products in enumerate(halves):
            self.add_to(half, *products)

    def add_to(self, half: int, own: Tensor, drift: Tensor, count: int) -> None:
        """Add the products of some positions of a half."""
        if not self.own:
            self.own, self.drift = ([torch.zeros_like(value) for _ in range(2)] for value in (own, drift))
        self.counts[half] += count
        self.own[half] += own
        self.drift[half] += drift

    def step(self, weight: Tensor) -> Tensor:
        """The step of a weight [groups, rows, cols], of cross-validated size."""
        gains = costs = 0.0
        for fit, held in ((0, 1), (1, 0)):
            change = _solved(weight, self.own[fit], self.drift[fit])
            gains += float((change * (weight @ self.drift[held])).sum())
            costs += float((change * (change @ self.own[held])).sum())
        share = min(max(gains / costs, 0.0), 1.0) if costs > 0 else 0.0
        share *= self.count / (self.count + _PRIOR_COLUMNS)
        return share * _solved(weight, self.own[0] + self.own[1], self.drift[0] + self.drift[1])


def _solved(weight: Tensor, own: Tensor, drift: Tensor) -> Tensor:
    """weight @ drift @ (own + ridge)^-1, solved in float64; zero where the inputs were always zero."""
    mean = own.diagonal(dim1=1, dim2=2).double().mean(1)
    damped = own.double() + torch.diag_embed((_RIDGE * mean + 1e-30)[:, None].expand(-1, own.shape[2]))
    factor, info = torch.linalg.cholesky_ex(damped)
    if bool((info != 0).any()):
        return torch.zeros_like(weight)
    if weight.shape[1] > weight.shape[2]:  # fewer columns to solve for, and no copy of the weight in float64
        return weight @ torch.cholesky_solve(drift.double().mT, factor).mT.to(weight.dtype)
    return torch.cholesky_solve((weight.double() @ drift.double()).mT, factor).mT.to(weight.dtype)


@dataclass(frozen=True)
class Compensation:
    """Compares the inputs of weights in two networks of one class: the original, and the one being compressed.

    Weights whose targets were given are taken to stay as they are at the next call.
    memory: bytes that inputs of the original's weights may take; where they take more, it runs again for each stage.
    """

    original: nn.Module
    compressed: nn.Module
    batches: Iterable[Any]
    layouts: Mapping[str, Layout]
    forward: Forward | None = None
    memory: int = MEMORY

    def order(self) -> dict[str, int]:
        """The weights that one batch uses, in the order of their first use, and how often each is used."""
        return self._uses[0]

    def targets(self, names: Mapping[str, int]) -> dict[str, Tensor]:
        """The tensors to approximate instead of these weights, where their inputs have changed.

        names: how often each weight is used.
        """
        sums: dict[tuple[str, Place], DriftMoments] = {}
        settled = sum(1 for _ in takewhile(self._given.__contains__, self.order()))
        originals, compressed = self._sources
        before = originals.of(names, settled) if self._kept is None else self._kept
        for own, other in zip(before, compressed.of(names, settled), strict=True):
            after, products = by_place(other, names), _Products()
            for key, uses in by_place(own, names).items():
                moments = sums.setdefault(key, DriftMoments())
                for pair in zip(uses, after.get(key, ()), strict=False):
                    moments.add(products.of(*pair))
        self._given.update(names)
        state = self.original.state_dict()
        targets: dict[str, Tensor] = {}
        for (name, place), moments in sums.items():
            if moments.own:
                layout = self.layouts[name]
                matrix = layout.split(targets.get(name, state[name]))[0].clone()
                _step(matrix, place, moments)
                targets[name] = layout.join([matrix])
        return targets

    @cached_property
    def _batches(self) -> list[Any]:
        """The batches that both networks are run on, kept because a loader that shuffles gives others each time."""
        return list(spread(self.batches, _BATCHES_PER_STAGE))

    @cached_property
    def _original(self) -> InputSource:
        return InputSource(self.original, self._batches, self.layouts, self.forward)

    @cached_property
    def _uses(self) -> tuple[dict[str, int], list[Ran]]:
        return self._original.uses()

    @cached_property
    def _sources(self) -> tuple[StagedInputs, StagedInputs]:
        other = InputSource(self.compressed, self._batches, self.layouts, self.forward)
        first, second = (StagedInputs(source, self._uses[1], self.memory) for source in (self._original, other))
        return first, second

    @cached_property
    def _given(self) -> set[str]:
        """The weights whose targets were given."""
        return set()

    @cached_property
    def _kept(self) -> list[list[Recorded]] | None:
        """The inputs of all weights of the original, by batch; None where they take more than the memory."""
        kept: list[list[Recorded]] = []
        size = 0
        for i in range(len(self._batches) if self.memory else 0):
            kept.append(self._original.all(i))
            size += sum({id(one.x): one.x.nbytes for one in kept[-1]}.values())
            if max(size, size / len(kept) * len(self._batches)) > self.memory:
                return None
        return kept or None


def _step(matrix: Tensor, place: Place, moments: DriftMoments) -> None:
    """Move the rows of a place in the matrix [rows, cols]."""
    start, stop, groups = place
    step = moments.step(matrix[start:stop].reshape(groups, -1, matrix.shape[1]))
    if bool(torch.isfinite(step).all()):  # not where inputs overflow float32
        matrix[start:stop] += step.reshape(stop - start, -1)
