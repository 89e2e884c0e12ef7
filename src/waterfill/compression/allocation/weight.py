"""One tensor on its way to parts: its matrices, what their errors cost, its curve on a sample, and its blob."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from waterfill import recipe
from waterfill.compression.allocation.curve import Curve, Point
from waterfill.compression.allocation.damping import damped
from waterfill.dtypes import STORED, dtype_name, octets
from waterfill.errors import BadInput
from waterfill.importance import Importance, entrywise, without_data
from waterfill.model.entry import Fitted, decode, encode
from waterfill.network.layout import RAW, VECTOR, Layout
from waterfill.network.pruned import visible
from waterfill.network.pruned import within as under_mask
from waterfill.part import Spec
from waterfill.storage import manifest, name_problem

SAMPLE = 1 << 16
"""About how many entries of a weight its curve is measured on."""
_COMPARED = 1 << 20  # entries; larger parts are read back too, under their checksums, but not compared
_RANGE = 2.0**-50, 2.0**50  # of the largest value; beyond, squares leave the range of float32
_PIECE = 1 << 18  # entries
_TINY = 1e-30
_TOO_SMALL = 64  # entries; below, any side information costs more than it saves
_SMALL = "Dense()"
_LEVELS = "Codebook(levels=2)"  # exact for zeros and ones
_EXACT = 'Dense(format="lossless")'

_REASONS = {VECTOR: "one-dimensional", RAW: "not floating point: kept bit for bit"}


@dataclass(frozen=True, eq=False)
class Weight:
    """A named tensor and how to get at it.

    load: the whole tensor, as often as it is wanted. spec: what the user asked for. importance: what was given for each
    of its matrices, or None; a function that reads it gets asked whenever it is wanted, and nothing of it is kept.
    factor: what errors cost beside what is assumed without data, where `importance` is None. kept: why the tensor is
    kept bit for bit though its numbers could be rounded, or nothing. mask: what tells the entries that are seen (bool);
    None for all of them.
    """

    name: str
    layout: Layout
    spec: Spec
    load: Callable[[], Tensor]
    importance: Importance | Callable[[], Importance] | None = None
    factor: float = 1.0
    kept: str = ""
    mask: Callable[[], Tensor] | None = None
    _trust: dict[int, tuple[float, float]] = field(default_factory=dict)

    @functools.cached_property
    def reason(self) -> str:
        """Why this tensor is not compressed by the user's recipe; empty if it is."""
        if self.layout.entries == 0:
            return "empty"
        if self.kept:
            return self.kept
        if self.layout.role == RAW and self.layout.dtype.is_floating_point:
            return "kept bit for bit"
        if self.layout.role in _REASONS:
            return _REASONS[self.layout.role]
        if self.layout.entries < _TOO_SMALL:
            return "too small to gain"
        largest = max(float(target.abs().max()) for target in self._thinned)
        return "" if largest == 0 or _RANGE[0] < largest < _RANGE[1] else "values too small or too large to be squared"

    @property
    def chosen_spec(self) -> Spec:
        """The user's spec, or Dense where the tensor stays as it is."""
        if self.layout.role == RAW:
            return recipe.parse(_EXACT)
        if self.kept:
            return recipe.parse(_LEVELS)
        return recipe.parse(_SMALL) if self.reason else self.spec

    @functools.cached_property
    def curve(self) -> Curve:
        """Bits and distortion of the whole tensor by price, measured on a sample of its rows."""
        scale = self.layout.count * math.prod(self.layout.matrix) / max(1, sum(t.numel() for t in self._thinned))

        def measure(price: float) -> Point:
            pairs = zip(self._thinned, self._thinned_importance(), strict=True)
            thinned = [(target, self._damped(importance, price)) for target, importance in pairs]
            parts = [self.chosen_spec.fit(target, importance, price) for target, importance in thinned]
            distortion = sum(
                0.0 if self.layout.role == RAW else importance.distortion(target - part.dense())
                for part, (target, importance) in zip(parts, thinned, strict=True)
            )
            return Point(scale * sum(part.bits for part in parts), scale * distortion)

        if self.layout.role == RAW:  # the price changes nothing
            return Curve(functools.lru_cache(lambda price: measure(1.0)))
        return Curve(measure)

    @functools.cached_property
    def level(self) -> float | None:
        """The logarithm to base 4 of the price at which, by the high-rate formula, entries would take no bits; each bit
        more is a price four times lower. None without importance from data."""
        if self.importance is None or self.reason:
            return None
        target, importance = self._thinned[0], self._thinned_importance()[0]
        if importance.gram is None:
            return None
        energy = (target.double().square().mean(1) * importance.rows.double()).clamp_min(_TINY)
        assert importance.lower is not None
        return float(0.5 * energy.log2().mean()) + float(np.log2(np.diag(importance.lower)).mean())

    def tensor(self) -> Tensor:
        """The tensor; entries that a mask hides are zero, which costs least and is as good as anything."""
        return self.seen(self.load())

    def seen(self, values: Tensor) -> Tensor:
        """Values of this tensor, zero where a mask hides them."""
        return values if self.mask is None else visible(values, self.mask())

    def check(self) -> None:
        """Raise BadInput, naming the tensor, if a file cannot hold it or its importance does not fit it."""
        problem = name_problem(self.name)
        if problem:
            raise BadInput(f"tensor {self.name!r}: the name {problem}; rename it")
        problem = manifest.shape_problem(self.layout.shape)
        if dtype_name(self.layout.dtype) not in STORED:
            problem = f"is {self.layout.dtype}, which no file can hold; give its bytes instead: view(torch.uint8)"
        if problem:
            raise BadInput(f"tensor {self.name!r} {problem}")
        told = self._told
        if told is None:
            return
        try:
            told.check(*self.layout.matrix)
        except BadInput as error:
            raise BadInput(f"tensor {self.name!r}: {error}") from error

    @functools.cached_property
    def _picked(self) -> tuple[Tensor, Tensor] | None:
        """The rows and columns of a sample; None for all of them."""
        shape, count = self.layout.matrix, len(range(0, self.layout.count, self._every))
        row, col = _spread(shape, self._positions, SAMPLE // max(1, count))
        return None if len(row) == shape[0] and len(col) == shape[1] else (row, col)

    @property
    def _every(self) -> int:
        """One in so many matrices is in the sample."""
        return max(1, self.layout.count // 4)

    @functools.cached_property
    def _thinned(self) -> list[Tensor]:
        """Evenly spread rows and channels of the tensor, or of some of its matrices."""
        thinned = []
        for matrix in self.layout.split(self.tensor())[:: self._every]:
            target = matrix
            if self._picked is not None:
                row, col = self._picked
                target = matrix[row][:, col].contiguous()
            thinned.append(target)
        return thinned

    def _thinned_importance(self) -> list[Importance]:
        """What errors in each of `_thinned` cost; what can be read again is not kept."""
        if callable(self.importance):
            return [self._importance(target, self._picked) for target in self._thinned]
        return self._kept_importance

    @functools.cached_property
    def _kept_importance(self) -> list[Importance]:
        return [self._importance(target, self._picked) for target in self._thinned]

    @property
    def _given(self) -> Importance | None:
        """The importance that was given, as far as a mask lets errors be seen."""
        told = self._told
        return told if told is None or self.mask is None else under_mask(told, self.mask(), self.layout)

    @property
    def _told(self) -> Importance | None:
        """The importance that was given, read if it is to be read."""
        return self.importance() if callable(self.importance) else self.importance

    @property
    def _positions(self) -> int:
        """Columns that a sample must keep together: a channel's, or all where a Gram matrix joins them."""
        given = self._given
        if given is not None and given.gram is not None and len(given.gram) == self.layout.matrix[1]:
            return self.layout.matrix[1]
        return math.prod(self.layout.kernel if given is None else given.kernel)

    def _importance(self, target: Tensor, picked: tuple[Tensor, Tensor] | None = None) -> Importance:
        """What errors in a target cost, of which `picked` are the rows and columns if it is a sample."""
        given = self._given
        if given is not None:
            return given if picked is None else given.select(*picked)
        if self.layout.role == RAW:
            return Importance(kernel=self.layout.kernel)
        found = assumed(target, self.layout).scaled(self.factor)
        # what a mask hides cannot make up for errors beside it
        return found if self.mask is None else replace(found, gram=None)

    def _damped(self, importance: Importance, price: float) -> Importance:
        """The importance with the damping for a price, which is sought once for every factor of 16."""
        if importance.halves is None:
            return importance
        level = round(math.log(price, 16))
        if level not in self._trust:
            target, own = self._thinned[0], self._thinned_importance()[0]
            found = damped(target, own, 16.0**level)
            self._trust[level] = found.damping, float(found.rows.sum() / own.rows.double().sum().clamp_min(1e-300))
        damping, factor = self._trust[level]
        return replace(importance, damping=damping).scaled(factor)

    def asked(self, price: float) -> Iterator[tuple[Tensor, Importance]]:
        """Every matrix of the tensor, and what errors in it cost at a price."""
        for target in self.layout.split(self.tensor()):
            yield target, self._damped(self._importance(target), price)

    def fit(self, price: float) -> "Fitted":
        """The parts at a price as their blob gives them back, and how far they are from the tensor.

        Raises BadInput for weights that are not finite.
        """
        targets = self.layout.split(self.tensor())
        spec = self.chosen_spec
        found = [spec.fit(target, self._damped(self._importance(target), price), price) for target in targets]
        blob = encode(tuple(found))
        written = [part.dense() if math.prod(part.shape) <= _COMPARED else None for part in found]
        del found  # before they are read back: a matrix is not to be in memory more often than it must
        parts = decode(blob, self.layout, self.name)  # what the file will hold is what counts
        lost, energy = 0.0, 0.0
        for target, before, after in zip(targets, written, parts, strict=True):
            if self.layout.role == RAW and before is None:
                continue
            restored = after.dense()
            if before is not None and not _same(before, restored):
                raise AssertionError(
                    f"tensor {self.name!r} reads back otherwise than it was written; please report this"
                )
            if self.layout.role != RAW:
                gap, whole = _squared_norms(target, restored)
                lost, energy = lost + gap, energy + whole
        error = (lost / energy) ** 0.5 if energy > 0 else 0.0
        if not math.isfinite(error):
            raise BadInput(
                f"tensor {self.name!r} holds values that are too large for {self.chosen_spec!r}; "
                "use another recipe, or keep every bit with lossless=True (--lossless)"
            )
        return Fitted(parts, blob, error)


def assumed(target: Tensor, layout: Layout) -> Importance:
    """What errors in a matrix, or in some of its rows, are taken to cost where nothing but its values is known."""
    if layout.role == VECTOR:
        return entrywise(target)
    return without_data(target, layout.kernel, math.prod(layout.matrix))


def _squared_norms(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The squared norms of a - b and of a, of one shape, some entries at a time: temporaries stay in the cache."""
    lost = energy = 0.0
    for x, y in zip(a.reshape(-1).split(_PIECE), b.reshape(-1).split(_PIECE), strict=True):
        gap = (x - y.to(x.dtype)).reshape(1, -1)
        lost += Importance().inner(gap, gap)
        energy += Importance().inner(x.reshape(1, -1), x.reshape(1, -1))
    return lost, energy


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit."""
    return a.dtype == b.dtype and torch.equal(octets(a), octets(b))


def _spread(shape: tuple[int, int], positions: int, entries: int) -> tuple[Tensor, Tensor]:
    """Rows and columns, whole channels of `positions` each, of a sample of about so many entries."""
    rows, channels = shape[0], max(1, shape[1] // max(1, positions))
    width = max(1, shape[1] // channels)
    keep_rows = min(rows, max(64, entries // max(1, shape[1])))
    keep_channels = min(channels, max(64, entries // (keep_rows * width)))
    row = torch.arange(0, rows, max(1, rows // keep_rows))[:keep_rows]
    channel = torch.arange(0, channels, max(1, channels // keep_channels))[:keep_channels]
    return row, (channel[:, None] * width + torch.arange(width)).reshape(-1)
