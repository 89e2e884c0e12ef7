"""What each use of a weight adds to its importance: products, mixtures of rows, convolutions and look-ups.

A use is told from the memory a tensor lies in, so that slices and transposes of a weight count as the weight; so does
what is computed from a weight as a multiple of its rows: a copy, a cast, a weight made of a direction and a length.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from waterfill.calibration.moments import Moments
from waterfill.errors import BadInput
from waterfill.network.layout import KERNEL
from waterfill.network.tracing.derived import multiple_of_rows
from waterfill.network.tracing.im2col import Geometry, all_windows, squares, vectors, windows
from waterfill.network.tracing.views import Plan, Use, _Held, _place

PRODUCT, MIXTURE = "product", "mixture"


class Uses:
    """Gathers `Moments` of the uses of weights, from inputs now and from gradients when they come.

    weights: by name, the tensors that the model computes with. anchor: a zero that every first output is made to depend
    on; its gradient is to be asked for, so that none has to be computed for the weights. seeing: the block in which
    calls are seen, for rules that replace one call by several. samples: in the batch that runs.
    """

    def __init__(self, weights: Mapping[str, Tensor], plan: Plan, generator: torch.Generator) -> None:
        self.plan = plan
        self.anchor = torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=True)
        self.seeing: AbstractContextManager[Any] = nullcontext()
        self.terms: dict[str, dict[tuple[Any, ...], Moments]] = defaultdict(dict)
        self.samples = 0
        self._generator = generator
        self._weights: dict[int, list[_Held]] = defaultdict(list)
        self._computed: list[tuple[int, _Held]] = []
        for name, value in weights.items():
            self._weights[_place(value)].append(_Held(name, value))

    def names(self, value: Tensor) -> Iterator[str]:
        """The weights in whose memory a tensor lies."""
        for held in self._weights.get(_place(value), ()):
            offset = value.storage_offset() - held.value.storage_offset()
            if 0 <= offset < max(1, held.value.numel()):
                yield held.name

    def computed(self, value: Tensor, result: Tensor) -> bool:
        """Let multiples of the rows of a whole weight count as the weight until `forget`; False if they are none."""
        use = self.locate(value)
        if use is None or result.shape != value.shape or use.rows != (0, self.plan.layouts[use.name].matrix[0]):
            return False
        if use.transposed:
            value, result = value.mT, result.mT
        found = multiple_of_rows(value, result, self.plan.layouts[use.name].matrix)
        if found is None:
            return False
        factors, moved = found
        factors = factors if use.factors is None else factors * use.factors
        held = _Held(use.name, result, factors, moved or use.moved)
        self._weights[_place(result)].append(held)
        self._computed.append((_place(result), held))
        return True

    def forget(self) -> None:
        """A batch is done: what was computed from weights on the way is gone."""
        for place, held in self._computed:
            self._weights[place] = [kept for kept in self._weights[place] if kept is not held]
        self._computed.clear()

    def locate(self, value: Any) -> Use | None:
        """What part of which weight a tensor is; None if it is none, or a view that has no rows of it."""
        if not isinstance(value, Tensor):
            return None
        for held in self._weights.get(_place(value), ()):
            found = self._rows_in(held, value)
            if found is None:
                continue
            start, stop, transposed = found
            factors = None if held.factors is None else held.factors[start:stop]
            return Use(held.name, (start, stop), transposed, factors, held.moved)
        return None

    def _rows_in(self, held: _Held, value: Tensor) -> tuple[int, int, bool] | None:
        """Which rows of a weight a tensor is, from and to, and whether transposed."""
        weight, layout = held.value, self.plan.layouts[held.name]
        rows, cols = layout.matrix
        offset = value.storage_offset() - weight.storage_offset()
        if offset == 0 and value.shape == weight.shape and value.stride() == weight.stride():
            return 0, rows, False
        turned = value.mT if value.ndim >= 2 and layout.role != KERNEL else value
        if offset == 0 and turned.shape == weight.shape and turned.stride() == weight.stride():
            return 0, rows, True
        if not weight.is_contiguous() or not 0 <= offset < weight.numel() or offset % cols:
            return None
        start = offset // cols % rows
        if value.shape[1:].numel() == cols and value.is_contiguous():
            return start, start + value.shape[0], False
        if value.ndim == 2 and value.shape[0] == cols and value.mT.is_contiguous():
            return start, start + value.shape[1], True
        return None

    def term(self, use: Use, kind: str, groups: int = 1) -> Moments | None:
        """Where to add what this use of a weight brings; None if it is not wanted in this pass."""
        full = self.plan.wanted.get(use.name)
        if full is None:
            return None
        key = (kind, *use.rows, groups)
        if key not in self.terms[use.name]:
            cols = self.plan.layouts[use.name].matrix[1]
            self.terms[use.name][key] = Moments(use.rows, groups, cols, full)
            self.terms[use.name][key].repeats = self.plan.probes if kind == PRODUCT else 1
        self.terms[use.name][key].calls += 1
        return self.terms[use.name][key]

    def watch(self, output: Tensor, callback: Callable[[Tensor], None]) -> Tensor:
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

    def scaled(self, use: Use, x: Tensor, y: Tensor) -> Tensor:
        """y [..., rows] = x [..., cols] W^T: columns are inputs."""
        term = self.term(use, PRODUCT)
        if term is None:
            return self.watch(y, _ignore)
        with torch.no_grad():
            _finite(term.add_columns(vectors(x, self._generator)), use.name, "inputs")
        samples = len(x) if x.ndim > 1 else 1
        term.aligned = term.aligned and samples == self.samples
        inputs = x.detach().reshape(samples, 1, -1, x.shape[-1])

        def gather(g: Tensor) -> None:
            g = use.times(g, -1)
            _finite(term.add_energy(squares(g, -1)), use.name, "gradients")
            gradients = g.reshape(samples, 1, -1, g.shape[-1]).mT.float()
            term.add_gradients(gradients, lambda some: inputs[some].mT.float())

        return self.watch(y, gather)

    def mixed(self, use: Use, energy: Tensor, y: Tensor, floor: float = 0.0) -> Tensor:
        """y [..., cols] = x [..., rows] W: columns are outputs; energy: sums of squares of x, [rows]."""
        term = self.term(use, MIXTURE)
        if term is None:
            return self.watch(y, _ignore)
        term.floor = max(floor, term.floor)
        _finite(term.add_energy(use.times(energy.detach(), power=2)), use.name, "inputs")
        return self.watch(y, lambda g: _finite(term.add_columns(vectors(g, self._generator)), use.name, "gradients"))

    def convolved(self, use: Use, x: Tensor, y: Tensor, geometry: Geometry) -> Tensor:
        """A convolution: as many products as it has groups, their columns the windows of the inputs."""
        term = self.term(use, PRODUCT, geometry.groups)
        if term is None:
            return self.watch(y, _ignore)
        dims = len(geometry.kernel)
        positions = tuple(y.shape[-dims:])
        with torch.no_grad():
            _finite(term.add_columns(windows(x, geometry, positions, self._generator)), use.name, "inputs")
        inputs = x.detach().reshape(-1, *x.shape[-1 - dims :])
        term.aligned = term.aligned and len(inputs) == self.samples

        def gather(g: Tensor) -> None:
            g = use.times(g, -1 - dims)
            _finite(term.add_energy(squares(g, -1 - dims)), use.name, "gradients")
            gradients = g.reshape(len(inputs), geometry.groups, -1, math.prod(positions)).float()
            term.add_gradients(gradients, lambda some: all_windows(inputs[some], geometry, positions))

        return self.watch(y, gather)

    def spread(self, use: Use, x: Tensor, y: Tensor, geometry: Geometry) -> Tensor:
        """A transposed convolution: its columns are the windows of the outputs."""
        term = self.term(use, MIXTURE, geometry.groups)
        if term is None:
            return self.watch(y, _ignore)
        dims = len(geometry.kernel)
        with torch.no_grad():
            _finite(term.add_energy(use.times(squares(x, -1 - dims), power=2)), use.name, "inputs")
        positions = tuple(x.shape[-dims:])

        def gather(g: Tensor) -> None:
            _finite(term.add_columns(windows(g, geometry, positions, self._generator)), use.name, "gradients")

        return self.watch(y, gather)

    def picked(self, use: Use, tokens: Tensor, y: Tensor) -> Tensor:
        """Rows of a weight by their number: a mixture of one."""
        rows = use.rows[1] - use.rows[0]
        counts = torch.bincount(tokens.reshape(-1) % rows, minlength=rows)
        return self.mixed(use, counts.double(), y, floor=0.5)  # a row that was not met may be met next


def _ignore(gradient: Tensor) -> None:
    """Nothing is wanted of this one."""


def _finite(fine: bool, name: str, what: str) -> None:
    if not fine:
        raise BadInput(
            f"the {what} at {name!r} are NaN, infinite or too large to be squared; "
            "look at the batches, or at the layers before it"
        )
