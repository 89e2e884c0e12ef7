"""The contribution of each product with a weight to its importance: products, mixtures, convolutions, look-ups."""

import math
from collections import Counter, defaultdict
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
class Selection:
    """What one pass measures. full: by the name of a weight, whether its whole Gram matrix is accumulated, or only the
    diagonal. probes: backward passes for each batch."""

    full: Mapping[str, bool]
    probes: int = 1


class MomentRecorder(Recorder):
    """Accumulates the `Moments` of products with weights, of inputs in the forward and gradients in the backward pass.

    layouts: of all weights. anchor: a zero that outputs without a gradient are made to depend on, so that the backward
    pass reaches them although no gradient of the weights is computed. terms: by weight, the sums of each of its uses.
    """

    def __init__(self, layouts: Mapping[str, Layout], selection: Selection, generator: torch.Generator) -> None:
        self.layouts = layouts
        self.selection = selection
        self.anchor = torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=True)
        self.terms: dict[str, dict[tuple[Any, ...], Moments]] = defaultdict(dict)
        self._exact: dict[str, tuple[int, float]] = {}
        self._samples = 0
        self._rows_used: Counter[str] = Counter()
        self._pieced: set[str] = set()
        self._generator = generator

    def begin(self, samples: int) -> None:
        """Start a batch of so many samples."""
        self._samples = samples
        self._rows_used.clear()
        self._pieced.clear()

    def needs_gradient(self, name: str) -> bool:
        """Whether the gradient of a weight in this batch is not what its one use, sample by sample, shows."""
        return name in self._pieced or self._rows_used[name] != self.layouts[name].matrix[0]

    def known(self, name: str) -> tuple[int, float]:
        """How many gradients of a weight were not needed, and the sum of their squares."""
        rows, total = self._exact.get(name, (0, 0.0))
        return rows // self.layouts[name].matrix[0], total

    def product(self, view: WeightView, x: Tensor, y: Tensor) -> Tensor:
        """y [..., rows] = x [..., cols] W^T: columns are inputs."""
        term = self._term(view, PRODUCT) if x.numel() else None  # an expert that no token of a batch was given to
        if term is None:
            return self._watch(y, _ignore)
        with torch.no_grad():
            _finite(term.add_columns(vectors(x, self._generator)), view.name, "inputs")
        samples = len(x) if x.ndim > 1 else 1
        self._use(view, term, x, samples)
        inputs = x.detach().reshape(samples, 1, -1, x.shape[-1])

        def gather(g: Tensor) -> None:
            g = view.times(g, -1)
            _finite(term.add_energy(squares(g, -1)), view.name, "gradients")
            gradients = g.reshape(samples, 1, -1, g.shape[-1]).mT.float()
            self._count(view, term.add_gradients(gradients, lambda some: inputs[some].mT.float()))

        return self._watch(y, gather)

    def mixture(self, view: WeightView, energy: Tensor, y: Tensor, floor: float = 0.0) -> Tensor:
        """y [..., cols] = x [..., rows] W: columns are outputs; energy: sums of squares of x, [rows]."""
        term = self._term(view, MIXTURE)
        if term is None:
            return self._watch(y, _ignore)
        term.floor = max(floor, term.floor)
        _finite(term.add_energy(view.times(energy.detach(), power=2)), view.name, "inputs")

        def gather(g: Tensor) -> None:
            _finite(term.add_slopes(vectors(g, self._generator)), view.name, "gradients")

        return self._watch(y, gather, picked=True)

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
        self._use(view, term, x, len(inputs))

        def gather(g: Tensor) -> None:
            g = view.times(g, -1 - dims)
            _finite(term.add_energy(squares(g, -1 - dims)), view.name, "gradients")
            gradients = g.reshape(len(inputs), geometry.groups, -1, math.prod(positions)).float()
            total = term.add_gradients(gradients, lambda some: all_windows(inputs[some], geometry, positions))
            self._count(view, total)

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
        return self.mixture(view, counts.double(), y, floor=0.5)  # a row that was not used may be used by other inputs

    def _term(self, view: WeightView, kind: str, groups: int = 1) -> Moments | None:
        """The sums for this use of a weight; None if the weight is not measured in this pass."""
        full = self.selection.full.get(view.name)
        if full is None:
            return None
        key = (kind, *view.rows, groups)
        if key not in self.terms[view.name]:
            cols = self.layouts[view.name].matrix[1]
            self.terms[view.name][key] = Moments(view.rows, groups, cols, full, kind == PRODUCT)
            self.terms[view.name][key].repeats = self.selection.probes if kind == PRODUCT else 1
        self.terms[view.name][key].calls += 1
        if kind != PRODUCT or not full:
            self._pieced.add(view.name)
        return self.terms[view.name][key]

    def _use(self, view: WeightView, term: Moments, x: Tensor, samples: int) -> None:
        """Note a product; without a gradient of `x` nothing but that of the weight leads backward to it."""
        aligned = samples == self._samples
        term.aligned = term.aligned and aligned
        self._rows_used[view.name] += view.rows[1] - view.rows[0]
        if not aligned or not x.requires_grad or view.factors is not None:
            self._pieced.add(view.name)

    def _count(self, view: WeightView, total: float) -> None:
        """Note the squares of a gradient that need not be computed."""
        if not self.needs_gradient(view.name):
            rows, before = self._exact.get(view.name, (0, 0.0))
            self._exact[view.name] = rows + view.rows[1] - view.rows[0], before + total

    def _watch(self, output: Tensor, callback: Callable[[Tensor], None], picked: bool = False) -> Tensor:
        """The output, as part of the graph; `callback` is called with its gradient.

        picked: whether no inputs lead to it, only the weight, whose gradient may not be asked for.
        """
        if not torch.is_grad_enabled():
            return output
        if picked or not output.requires_grad:
            output = output + self.anchor

        def hook(gradient: Tensor) -> None:
            with torch.no_grad():
                callback(gradient.detach())

        output.register_hook(hook)
        return output


def _ignore(gradient: Tensor) -> None:
    """For outputs whose gradient is not used."""


def _finite(fine: bool, name: str, what: str) -> None:
    if not fine:
        raise BadInput(
            f"the {what} at {name!r} are NaN, infinite or too large to be squared; "
            "look at the batches, or at the layers before it"
        )
