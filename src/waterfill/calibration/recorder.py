"""What each product with a weight adds to its importance: products, mixtures of rows, convolutions and look-ups."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from waterfill.calibration.moments import Moments
from waterfill.errors import BadInput
from waterfill.network.layout import Layout
from waterfill.network.tracing.im2col import Geometry, all_windows, squares, vectors, windows
from waterfill.network.tracing.recorder import Recorder
from waterfill.network.tracing.views import WeightView

PRODUCT, MIXTURE = "product", "mixture"


@dataclass(frozen=True)
class Wanted:
    """What a pass is to gather. full: the names to gather, and whether whole Gram matrices. probes: how often the
    gradient comes back for each batch."""

    full: Mapping[str, bool]
    probes: int = 1


class MomentRecorder(Recorder):
    """Gathers `Moments` of the products with weights, from inputs now and from gradients when they come.

    layouts: of all weights. anchor: a zero that every first output is made to depend on; its gradient is to be asked
    for, so that none has to be computed for the weights. terms: by weight, what was gathered of each way it is used.
    """

    def __init__(self, layouts: Mapping[str, Layout], wanted: Wanted, generator: torch.Generator) -> None:
        self.layouts = layouts
        self.wanted = wanted
        self.anchor = torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=True)
        self.terms: dict[str, dict[tuple[Any, ...], Moments]] = defaultdict(dict)
        self._samples = 0
        self._generator = generator

    def begin(self, samples: int) -> None:
        """A batch of so many samples is about to run."""
        self._samples = samples

    def product(self, view: WeightView, x: Tensor, y: Tensor) -> Tensor:
        """y [..., rows] = x [..., cols] W^T: columns are inputs."""
        term = self._term(view, PRODUCT)
        if term is None:
            return self._watch(y, _ignore)
        with torch.no_grad():
            _finite(term.add_columns(vectors(x, self._generator)), view.name, "inputs")
        samples = len(x) if x.ndim > 1 else 1
        term.aligned = term.aligned and samples == self._samples
        inputs = x.detach().reshape(samples, 1, -1, x.shape[-1])

        def gather(g: Tensor) -> None:
            g = view.times(g, -1)
            _finite(term.add_energy(squares(g, -1)), view.name, "gradients")
            gradients = g.reshape(samples, 1, -1, g.shape[-1]).mT.float()
            term.add_gradients(gradients, lambda some: inputs[some].mT.float())

        return self._watch(y, gather)

    def mixture(self, view: WeightView, energy: Tensor, y: Tensor, floor: float = 0.0) -> Tensor:
        """y [..., cols] = x [..., rows] W: columns are outputs; energy: sums of squares of x, [rows]."""
        term = self._term(view, MIXTURE)
        if term is None:
            return self._watch(y, _ignore)
        term.floor = max(floor, term.floor)
        _finite(term.add_energy(view.times(energy.detach(), power=2)), view.name, "inputs")
        return self._watch(y, lambda g: _finite(term.add_slopes(vectors(g, self._generator)), view.name, "gradients"))

    def convolution(self, view: WeightView, x: Tensor, y: Tensor, geometry: Geometry) -> Tensor:
        """A convolution: as many products as it has groups, their columns the windows of the inputs."""
        term = self._term(view, PRODUCT, geometry.groups)
        if term is None:
            return self._watch(y, _ignore)
        dims = len(geometry.kernel)
        positions = tuple(y.shape[-dims:])
        with torch.no_grad():
            _finite(term.add_columns(windows(x, geometry, positions, self._generator)), view.name, "inputs")
        inputs = x.detach().reshape(-1, *x.shape[-1 - dims :])
        term.aligned = term.aligned and len(inputs) == self._samples

        def gather(g: Tensor) -> None:
            g = view.times(g, -1 - dims)
            _finite(term.add_energy(squares(g, -1 - dims)), view.name, "gradients")
            gradients = g.reshape(len(inputs), geometry.groups, -1, math.prod(positions)).float()
            term.add_gradients(gradients, lambda some: all_windows(inputs[some], geometry, positions))

        return self._watch(y, gather)

    def transposed_convolution(self, view: WeightView, x: Tensor, y: Tensor, geometry: Geometry) -> Tensor:
        """A transposed convolution: its columns are the windows of the outputs."""
        term = self._term(view, MIXTURE, geometry.groups)
        if term is None:
            return self._watch(y, _ignore)
        dims = len(geometry.kernel)
        with torch.no_grad():
            _finite(term.add_energy(view.times(squares(x, -1 - dims), power=2)), view.name, "inputs")
        positions = tuple(x.shape[-dims:])

        def gather(g: Tensor) -> None:
            _finite(term.add_slopes(windows(g, geometry, positions, self._generator)), view.name, "gradients")

        return self._watch(y, gather)

    def lookup(self, view: WeightView, tokens: Tensor, y: Tensor) -> Tensor:
        """Rows of a weight by their number: a mixture of one."""
        rows = view.rows[1] - view.rows[0]
        counts = torch.bincount(tokens.reshape(-1) % rows, minlength=rows)
        return self.mixture(view, counts.double(), y, floor=0.5)  # a row that was not met may be met next

    def _term(self, view: WeightView, kind: str, groups: int = 1) -> Moments | None:
        """Where to add what this view of a weight brings; None if it is not wanted in this pass."""
        full = self.wanted.full.get(view.name)
        if full is None:
            return None
        key = (kind, *view.rows, groups)
        if key not in self.terms[view.name]:
            cols = self.layouts[view.name].matrix[1]
            self.terms[view.name][key] = Moments(view.rows, groups, cols, full)
            self.terms[view.name][key].repeats = self.wanted.probes if kind == PRODUCT else 1
        self.terms[view.name][key].calls += 1
        return self.terms[view.name][key]

    def _watch(self, output: Tensor, callback: Callable[[Tensor], None]) -> Tensor:
        """The output, made part of the graph; `callback` gets its gradient."""
        if not torch.is_grad_enabled():
            return output
        if not output.requires_grad:
            output = output + self.anchor

        def hook(gradient: Tensor) -> None:
            with torch.no_grad():
                callback(gradient.detach())

        output.register_hook(hook)
        return output


def _ignore(gradient: Tensor) -> None:
    """Nothing is wanted of this one."""


def _finite(fine: bool, name: str, what: str) -> None:
    if not fine:
        raise BadInput(
            f"the {what} at {name!r} are NaN, infinite or too large to be squared; "
            "look at the batches, or at the layers before it"
        )
