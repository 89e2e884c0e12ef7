"""Targets that compensate for the changed inputs of a weight after the layers before it are compressed.

Where a compressed network gives a layer x' instead of x, the matrix nearest to W in outputs is not W but
W + W E[(x - x') x'^T] E[x' x'^T]^-1 (GPTAQ, arXiv 2504.02692). The size of that step is cross-validated on two halves
of the inputs.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.calibration.calibrate import MEMORY
from waterfill.network.layout import KERNEL, MATRIX, Layout
from waterfill.network.running.batches import spread
from waterfill.network.running.forward import Forward, as_deployed, call
from waterfill.network.tracing.im2col import Geometry, vectors, windows
from waterfill.network.tracing.recorder import Recorder
from waterfill.network.tracing.tracer import Tracer
from waterfill.network.tracing.views import WeightView, WeightViews

_BATCHES_PER_STAGE = 64  # batches run through both networks for each stage
_RIDGE = 1e-2  # relative to the mean diagonal; the step size is cross-validated besides
_PRIOR_COLUMNS = 8  # pseudo-columns for which a step of zero is best

Place = tuple[int, int, int]
"""First and last row (exclusive) of a weight, and the number of groups of these rows."""


class _AllRecorded(Exception):
    """All selected inputs are recorded; the rest of the network need not run."""


@dataclass(frozen=True)
class _Recorded:
    """The inputs of one use of a weight, [..., cols]; of a convolution, with its geometry and output positions."""

    view: WeightView
    x: Tensor
    geometry: Geometry | None = None
    positions: tuple[int, ...] = ()

    @property
    def place(self) -> Place:
        """The rows of the weight that multiply them."""
        return (*self.view.rows, 1 if self.geometry is None else self.geometry.groups)

    def columns(self, generator: torch.Generator) -> Tensor:
        """A sample of them as [groups, cols, positions], float32."""
        if self.geometry is None:
            return vectors(self.x, generator)
        return windows(self.x, self.geometry, self.positions, generator)


class _InputRecorder(Recorder):
    """Records the inputs of weights that multiply them, and the order of the weights.

    names: of the weights whose inputs are recorded. calls: of these weights, after which the rest of the network need
    not run; None for all.
    """

    def __init__(self, layouts: Mapping[str, Layout], names: Container[str], calls: int | None) -> None:
        self.recorded: list[_Recorded] = []
        self.order: dict[str, int] = {}
        self._layouts = layouts
        self._names = names
        self._left = calls

    def product(self, view: WeightView, x: Tensor, y: Tensor) -> Tensor:
        """Inputs [..., cols] are kept."""
        if self._selects(view):
            self.recorded.append(_Recorded(view, x.detach().clone()))
        return y

    def convolution(self, view: WeightView, x: Tensor, y: Tensor, geometry: Geometry) -> Tensor:
        """Inputs are kept, with the geometry of the convolution."""
        if self._selects(view):
            positions = tuple(y.shape[-len(geometry.kernel) :])
            self.recorded.append(_Recorded(view, x.detach().clone(), geometry, positions))
        return y

    def mixture(self, view: WeightView, energy: Tensor, y: Tensor, floor: float = 0.0) -> Tensor:
        """Rows are mixed, not multiplied: only the order counts."""
        self._selects(view)
        return y

    def transposed_convolution(self, view: WeightView, x: Tensor, y: Tensor, geometry: Geometry) -> Tensor:
        """Rows are mixed: only the order counts."""
        self._selects(view)
        return y

    def lookup(self, view: WeightView, tokens: Tensor, y: Tensor) -> Tensor:
        """Rows are picked: only the order counts."""
        self._selects(view)
        return y

    def _selects(self, view: WeightView) -> bool:
        """Count a use; whether its inputs are to be recorded."""
        if self._left == 0:
            raise _AllRecorded
        self.order[view.name] = self.order.get(view.name, 0) + 1
        if view.name not in self._names:
            return False
        self._left = None if self._left is None else self._left - 1
        return not view.moved and self._layouts[view.name].role in (MATRIX, KERNEL)


def _columns(recorded: Iterable[_Recorded], names: Container[str]) -> dict[tuple[str, Place], list[Tensor]]:
    """The columns of these weights by their place, sampled at the same positions for both networks."""
    generator = torch.Generator("cpu").manual_seed(0)
    columns = defaultdict(list)
    for one in recorded:
        if one.view.name in names:
            columns[one.view.name, one.place].append(one.columns(generator))
    return columns


@dataclass
class _Moments:
    """Sums of x' x'^T and (x - x') x'^T over the positions of each half, [groups, cols, cols], and their count."""

    own: list[Tensor] = field(default_factory=list)
    drift: list[Tensor] = field(default_factory=list)
    count: int = 0

    def add(self, original: Tensor, compressed: Tensor) -> None:
        """Add columns [groups, cols, positions] of both networks."""
        cut = original.shape[2] // 2
        self.count += original.shape[2]
        for half, part in enumerate((slice(None, cut), slice(cut, None))):
            now = compressed[:, :, part]
            own, drift = torch.bmm(now, now.mT), torch.bmm(original[:, :, part] - now, now.mT)
            if half == len(self.own):
                self.own.append(own)
                self.drift.append(drift)
            else:
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
    return torch.cholesky_solve((weight.double() @ drift.double()).mT, factor).mT.to(weight.dtype)


@dataclass(frozen=True)
class Compensation:
    """Compares the inputs of weights in two networks of one class: the original, and the one being compressed.

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
        return self._run(self.original, self._batches[0], {}, None).order

    def targets(self, names: Mapping[str, int]) -> dict[str, Tensor]:
        """The tensors to approximate instead of these weights, where their inputs have changed.

        names: how often each weight is used.
        """
        sums: dict[tuple[str, Place], _Moments] = {}
        calls = sum(names.values())
        for i, batch in enumerate(self._batches):
            before = self._run(self.original, batch, names, calls).recorded if self._kept is None else self._kept[i]
            after = _columns(self._run(self.compressed, batch, names, calls).recorded, names)
            for key, columns in _columns(before, names).items():
                moments = sums.setdefault(key, _Moments())
                for original, compressed in zip(columns, after.get(key, ()), strict=False):
                    if original.shape == compressed.shape:
                        moments.add(original, compressed)
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
    def _kept(self) -> list[list[_Recorded]] | None:
        """The inputs of all weights of the original, by batch; None where they take more than the memory."""
        if not self.memory:
            return None
        kept, size = [], 0
        for batch in self._batches:
            kept.append(self._run(self.original, batch, self.layouts, None).recorded)
            size += sum(one.x.nbytes for one in kept[-1])
            if size > self.memory:
                return None
        return kept

    def _run(self, model: nn.Module, batch: Any, names: Container[str], calls: int | None) -> _InputRecorder:
        weights = {name: value for name, value in model.state_dict(keep_vars=True).items() if name in self.layouts}
        recorder = _InputRecorder(self.layouts, names, calls)
        with as_deployed(model), Tracer(WeightViews(weights, self.layouts), recorder), suppress(_AllRecorded):
            call(model, batch, self.forward)
        return recorder


def _step(matrix: Tensor, place: Place, moments: _Moments) -> None:
    """Move the rows of a place in the matrix [rows, cols]."""
    start, stop, groups = place
    step = moments.step(matrix[start:stop].reshape(groups, -1, matrix.shape[1]))
    if bool(torch.isfinite(step).all()):  # not where inputs overflow float32
        matrix[start:stop] += step.reshape(stop - start, -1)
