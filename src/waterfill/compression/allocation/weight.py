"""One tensor on its way to parts: its matrices, what their errors cost, its curve on a sample, and its blob."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from waterfill.compression.allocation.curve import Curve, Point, water_level
from waterfill.compression.allocation.damping import damped
from waterfill.compression.allocation.sample import SAMPLED_ENTRIES, Sample, rows_and_cols, stride_of
from waterfill.dtypes import STORED, dtype_name, octets
from waterfill.errors import BadInput
from waterfill.importance import Importance
from waterfill.model.entry import Entry, decode, encode
from waterfill.network.layout import RAW, VECTOR, Layout
from waterfill.network.pruned import visible
from waterfill.network.pruned import within as under_mask
from waterfill.part import Choice, Spec
from waterfill.parts import Codebook, Dense
from waterfill.storage import name_problem
from waterfill.storage.manifest import shape_problem
from waterfill.without_data import entrywise, line_by_line, without_data

_MOST_ENTRIES_COMPARED = 1 << 20  # larger parts are read back too, under their checksums, but not compared
_SQUARABLE = 2.0**-50, 2.0**50  # of the largest value; beyond, squares leave the range of float32
_ENTRIES_AT_A_TIME = 1 << 18
_MOST_ENTRIES_KEPT, _FITS_KEPT = 1 << 12, 4
_FEWEST_ENTRIES = 64  # with fewer, any side information costs more than it saves

_REASONS = {VECTOR: "one-dimensional", RAW: "not floating point: kept bit for bit"}

Damping = Callable[[int], tuple[float, float]]
"""k -> damping at the price 16^k, and what errors cost then over what they cost without it."""


@dataclass(frozen=True, eq=False)
class Weight:
    """A named tensor and how to get at it.

    load: the whole tensor, as often as it is asked for. spec: what it is fitted to. choice: what it could be fitted to,
    of which `spec` was chosen at some price; None where there was no choice. importance: reads what was given for each
    of its matrices; None where nothing was. streamed: whether that is read from disk each time, and nothing of it is to
    be kept. factor: what errors cost beside what is assumed of the tensor alone, where `importance` is None; lines:
    there, whether they count relative to each row ("rows") or column ("columns"), or to the whole (""). known_damping:
    the damping of the weight that this one was made of. kept: why the tensor is kept bit for bit though its numbers
    could be rounded, or nothing. mask: what tells the entries that are seen (bool); None for all of them.
    """

    name: str
    layout: Layout
    spec: Spec
    load: Callable[[], Tensor]
    importance: Callable[[], Importance] | None = None
    streamed: bool = False
    factor: float = 1.0
    lines: str = ""
    choice: Choice | None = None
    known_damping: Damping | None = None
    kept: str = ""
    mask: Callable[[], Tensor] | None = None

    def with_spec(self, spec: Spec) -> "Weight":
        """The same weight, to be fitted to another spec."""
        return replace(self, spec=spec, known_damping=self.damping)

    def with_values(self, load: Callable[[], Tensor]) -> "Weight":
        """The weight with other values to be fitted; its damping stays what the values before have shown."""
        return replace(self, load=load, known_damping=self.damping)

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
        if self.layout.entries < _FEWEST_ENTRIES:
            return "too small to gain"
        largest = max(float(target.abs().max()) for target in self._sample.targets)
        squarable = largest == 0 or _SQUARABLE[0] < largest < _SQUARABLE[1]
        return "" if squarable else "values too small or too large to be squared"

    @property
    def chosen_spec(self) -> Spec:
        """The user's spec, or Dense where the tensor stays as it is."""
        if self.layout.role == RAW:
            return Dense(format="lossless")
        if self.kept:
            return Codebook(levels=2)  # exact for zeros and ones
        return Dense() if self.reason else self.spec

    @functools.cached_property
    def curve(self) -> Curve:
        """Bits and distortion of the whole tensor by price, measured on its sample."""
        sample = self._sample
        scale = self.layout.count * math.prod(self.layout.matrix) / max(1, sample.entries)

        def measure(price: float) -> Point:
            pairs = zip(sample.targets, sample.importances(), strict=True)
            damped_pairs = [(target, self._damped(importance, price)) for target, importance in pairs]
            parts = [self.chosen_spec.fit(target, importance, price) for target, importance in damped_pairs]
            distortion = sum(
                0.0 if self.layout.role == RAW else importance.distortion(target - part.dense())
                for part, (target, importance) in zip(parts, damped_pairs, strict=True)
            )
            return Point(scale * sum(part.bits for part in parts), scale * distortion)

        if self.layout.role == RAW:  # the price changes nothing
            return Curve(functools.lru_cache(lambda price: measure(1.0)))
        return Curve(measure)

    def level(self, bits: float) -> float | None:
        """The logarithm to base 4 of the price at which entries take so many bits, by the formula of Gaussian sources.

        None without importance from data.
        """
        if self.importance is None or self.reason:
            return None
        target, importance = self._sample.targets[0], self._sample.importances()[0]
        if importance.gram is None or not bool(target.any()):
            return None
        return water_level(target, importance, bits) / 2

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
        problem = shape_problem(self.layout.shape)
        if dtype_name(self.layout.dtype) not in STORED:
            problem = f"is {self.layout.dtype}, which no file can hold; give its bytes instead: view(torch.uint8)"
        if problem:
            raise BadInput(f"tensor {self.name!r} {problem}")
        if self.importance is None:
            return
        try:
            self.importance().check(*self.layout.matrix)
        except BadInput as error:
            raise BadInput(f"tensor {self.name!r}: {error}") from error

    def asked(self, price: float) -> Iterator[tuple[Tensor, Importance]]:
        """Every matrix of the tensor, and what errors in it cost at a price."""
        for target in self.layout.split(self.tensor()):
            yield target, self._damped(self._importance(target), price)

    def fit(self, price: float) -> Entry:
        """The parts at a price as their blob gives them back, and how far they are from the tensor.

        Raises BadInput for weights that are not finite.
        """
        return self._fit_again(price) if self.layout.entries <= _MOST_ENTRIES_KEPT else self._fit(price)

    @functools.cached_property
    def _fit_again(self) -> Callable[[float], Entry]:
        """`_fit`, which remembers the last few prices: near the smallest file small weights go back and forth."""
        return functools.lru_cache(_FITS_KEPT)(self._fit)

    def _fit(self, price: float) -> Entry:
        targets, spec = self.layout.split(self.tensor()), self.chosen_spec
        fitted = [spec.fit(target, self._damped(self._importance(target), price), price) for target in targets]
        blob = encode(tuple(fitted))
        written = [part.dense() if math.prod(part.shape) <= _MOST_ENTRIES_COMPARED else None for part in fitted]
        del fitted  # before they are read back: a matrix is not to be in memory more often than it must
        parts = decode(blob, self.layout, self.name)  # what the file will hold is what counts
        lost = energy = 0.0
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
        return Entry(self.name, self.layout, parts, blob, self.reason, error)

    @functools.cached_property
    def damping(self) -> Damping:
        """The damping by price, sought on the sample once for every factor of 16 in the price."""
        if self.known_damping is not None:
            return self.known_damping

        @functools.cache
        def at(k: int) -> tuple[float, float]:
            own = self._sample.importances()[0]
            suited = damped(self._sample.targets[0], own, 16.0**k)
            return suited.damping, float(suited.rows.sum() / own.rows.double().sum().clamp_min(1e-300))

        return at

    def _damped(self, importance: Importance, price: float) -> Importance:
        """The importance with the damping for a price."""
        if importance.halves is None:
            return importance
        damping, factor = self.damping(round(math.log(price, 16)))
        return replace(importance, damping=damping).scaled(factor)

    @functools.cached_property
    def _sample(self) -> Sample:
        layout, stride = self.layout, stride_of(self.layout.count)
        positions, count = self._positions, len(range(0, layout.count, stride))
        rows, cols = rows_and_cols(layout.matrix, positions, SAMPLED_ENTRIES // max(1, count))
        targets = []
        for matrix in layout.split(self.tensor())[::stride]:
            targets.append(matrix if rows is None or cols is None else matrix[rows][:, cols].contiguous())

        def importances() -> list[Importance]:
            return [self._importance(target, rows, cols) for target in targets]

        return Sample(rows, cols, targets, importances if self.streamed else functools.cache(importances))

    @property
    def _positions(self) -> int:
        """Columns that a sample must keep together: a channel's, or all where a Gram matrix joins them."""
        if self.importance is None:
            return math.prod(self.layout.kernel)
        given, cols = self._given(self.importance), self.layout.matrix[1]
        return cols if given.gram is not None and len(given.gram) == cols else given.positions

    def _importance(self, target: Tensor, rows: Tensor | None = None, cols: Tensor | None = None) -> Importance:
        """What errors in a target cost, of which these are the rows and columns if it is a sample."""
        if self.importance is not None:
            given = self._given(self.importance)
            return given if rows is None or cols is None else given.select(rows, cols)
        if self.layout.role == RAW:
            return Importance(kernel=self.layout.kernel)
        found = assumed(target, self.layout, self.lines).scaled(self.factor)
        # what a mask hides cannot make up for errors beside it
        return found if self.mask is None else replace(found, gram=None)

    def _given(self, read: Callable[[], Importance]) -> Importance:
        """The importance that was given, as far as a mask lets errors be seen."""
        return read() if self.mask is None else under_mask(read(), self.mask(), self.layout)


def assumed(target: Tensor, layout: Layout, lines: str = "") -> Importance:
    """What errors in a matrix, or in some of its rows, are taken to cost where nothing but its values is known.

    lines: as of a `Weight`.
    """
    if layout.role == VECTOR:
        return entrywise(target)
    if lines:
        return line_by_line(target, lines, math.prod(layout.matrix))
    return without_data(target, layout.kernel, math.prod(layout.matrix))


def _squared_norms(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The squared norms of a - b and of a, of one shape, some entries at a time: temporaries stay in the cache."""
    lost = energy = 0.0
    for x, y in zip(a.reshape(-1).split(_ENTRIES_AT_A_TIME), b.reshape(-1).split(_ENTRIES_AT_A_TIME), strict=True):
        gap = (x - y.to(x.dtype)).reshape(1, -1)
        lost += Importance().inner(gap, gap)
        energy += Importance().inner(x.reshape(1, -1), x.reshape(1, -1))
    return lost, energy


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit."""
    return a.dtype == b.dtype and torch.equal(octets(a), octets(b))
