"""Records the inputs that weights multiply, in a network that is run on the same batches stage by stage."""

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.network.layout import KERNEL, MATRIX, Layout
from waterfill.network.running.forward import Forward, as_deployed, call
from waterfill.network.running.resume import Ran, Resumed, watched
from waterfill.network.tracing.im2col import Geometry, vectors, windows
from waterfill.network.tracing.recorder import Recorder
from waterfill.network.tracing.tracer import Tracer
from waterfill.network.tracing.views import WeightView, WeightViews

Place = tuple[int, int, int]
"""First and last row (exclusive) of a weight, and the number of groups of these rows."""


class AllRecorded(Exception):
    """All selected inputs are recorded; the rest of the network need not run."""


@dataclass(frozen=True)
class Recorded:
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


class InputRecorder(Recorder):
    """Records the inputs of weights that multiply them, and the order of the weights.

    names: of the weights whose inputs are recorded. calls: of these weights, after which the rest of the network need
    not run; None for all. roles: of weights whose inputs are recorded.
    """

    def __init__(
        self,
        layouts: Mapping[str, Layout],
        names: Container[str],
        calls: int | None,
        roles: Container[str] = (MATRIX, KERNEL),
    ) -> None:
        self.recorded: list[Recorded] = []
        self.order: dict[str, int] = {}
        self._layouts = layouts
        self._names = names
        self._left = calls
        self._roles = roles
        self._last: tuple[Tensor, int, Tensor] | None = None

    def product(self, view: WeightView, x: Tensor, y: Tensor) -> Tensor:
        """Inputs [..., cols] are kept."""
        if self._selects(view):
            self.recorded.append(Recorded(view, self._copy(x)))
        return y

    def convolution(self, view: WeightView, x: Tensor, y: Tensor, geometry: Geometry) -> Tensor:
        """Inputs are kept, with the geometry of the convolution."""
        if self._selects(view):
            positions = tuple(y.shape[-len(geometry.kernel) :])
            self.recorded.append(Recorded(view, self._copy(x), geometry, positions))
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

    def _copy(self, x: Tensor) -> Tensor:
        """A copy of inputs; the same one for weights that have the same inputs one after the other."""
        if self._last is None or self._last[0] is not x or self._last[1] != x._version:
            self._last = x, x._version, x.detach().clone()
        return self._last[2]

    def _selects(self, view: WeightView) -> bool:
        """Count a use; whether its inputs are to be recorded."""
        if self._left == 0:
            raise AllRecorded
        self.order[view.name] = self.order.get(view.name, 0) + 1
        if view.name not in self._names:
            return False
        self._left = None if self._left is None else self._left - 1
        return not view.moved and self._layouts[view.name].role in self._roles


def by_place(recorded: Iterable[Recorded], names: Container[str]) -> dict[tuple[str, Place], list[Recorded]]:
    """The inputs of these weights by their place."""
    found = defaultdict(list)
    for one in recorded:
        if one.view.name in names:
            found[one.view.name, one.place].append(one)
    return found


@dataclass(frozen=True, eq=False)
class InputSource:
    """The inputs of the weights of a network on some batches.

    layouts: of the weights.
    """

    model: nn.Module
    batches: Sequence[Any]
    layouts: Mapping[str, Layout]
    forward: Forward | None = None

    def uses(self) -> tuple[dict[str, int], list[Ran]]:
        """The weights that the first batch uses, in the order of their first use, with how often each is used; and the
        blocks of the network, with how many weights were used by their ends."""
        recorder = InputRecorder(self.layouts, {}, None)
        with watched(self.model, lambda: len(recorder.order)) as ran:
            self._run(0, recorder)
        return recorder.order, ran

    def all(self, i: int) -> list[Recorded]:
        """The inputs of all weights for batch i."""
        return self._run(i, InputRecorder(self.layouts, self.layouts, None))

    def of(self, i: int, names: Mapping[str, int]) -> list[Recorded]:
        """The inputs of some weights for batch i. names: how often each is used; what follows them does not run."""
        return self._run(i, InputRecorder(self.layouts, names, sum(names.values())))

    def _run(self, i: int, recorder: InputRecorder) -> list[Recorded]:
        weights = {name: v for name, v in self.model.state_dict(keep_vars=True).items() if name in self.layouts}
        views = WeightViews(weights, self.layouts)
        with as_deployed(self.model), Tracer(views, recorder), suppress(AllRecorded):
            call(self.model, self.batches[i], self.forward)
        return recorder.recorded


class StagedInputs:
    """The inputs of weights stage by stage, where those of earlier stages no longer change: the network is run from the
    last block that they finish.

    ran: the blocks of the network. memory: bytes that the outputs of one block may take, of all batches.
    """

    def __init__(self, source: InputSource, ran: Sequence[Ran], memory: int) -> None:
        self._source = source
        self._run = Resumed(source.model, ran, memory)
        self._compared = False

    def of(self, names: Mapping[str, int], settled: int) -> Iterator[list[Recorded]]:
        """The inputs of some weights, batch by batch. settled: how many weights, in order, no longer change."""
        self._run.aim(settled)
        for i in range(len(self._source.batches)):
            yield self._first(names) if i == 0 else self._any(i, names)
        self._run.arrive(len(self._source.batches))

    def _any(self, i: int, names: Mapping[str, int]) -> list[Recorded]:
        with self._run.running(i):
            return self._source.of(i, names)

    def _first(self, names: Mapping[str, int]) -> list[Recorded]:
        """The inputs for the first batch, which also shows whether the network can be run from a block."""
        if not self._run.resumes:
            return self._any(0, names)
        try:
            found = self._any(0, names)
            with self._run.running(0, otherwise=True):
                same = _same(found, self._source.of(0, names))
            if same and (self._compared or _same(found, self._source.of(0, names))):
                self._compared = True
                return found
        except BadInput:  # values that must not matter do, so much that it cannot run
            pass
        self._run.stop()
        return self._source.of(0, names)


def _same(a: Sequence[Recorded], b: Sequence[Recorded]) -> bool:
    """Whether the same weights have the same inputs, bit for bit."""
    pairs = zip(a, b, strict=False)
    return len(a) == len(b) and all(x.view == y.view and torch.equal(x.x, y.x) for x, y in pairs)
