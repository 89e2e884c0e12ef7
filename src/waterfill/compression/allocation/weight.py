"""One tensor to be compressed: its matrices, the cost of their errors, its rate-distortion curve, and its entry."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from waterfill.compression.allocation.curve import Curve, Point, water_level
from waterfill.compression.allocation.damping import damped
from waterfill.compression.allocation.held import held, held_in_all
from waterfill.compression.allocation.sample import SAMPLED_ENTRIES, Sample, rows_and_cols, stride_of
from waterfill.compression.allocation.without_data import assumed
from waterfill.dtypes import STORED, dtype_name, octets
from waterfill.errors import BadInput
from waterfill.importance import Importance
from waterfill.model.entry import Entry, decode, encode
from waterfill.network.layout import RAW, VECTOR, Layout
from waterfill.network.pruned import visible
from waterfill.network.pruned import within as under_mask
from waterfill.part import Choice, Part, Spec
from waterfill.parts import Codebook, Dense, for_kernels
from waterfill.storage import name_problem
from waterfill.storage.manifest import KERNEL, shape_problem

_MOST_ENTRIES_COMPARED = 1 << 20  # larger parts are read back too, under their checksums, but not compared
_SQUARABLE = 2.0**-50, 2.0**50  # of the largest value; beyond, squares leave the range of float32
_ENTRIES_AT_A_TIME = 1 << 18
_MOST_ENTRIES_KEPT, _FITS_KEPT = 1 << 12, 4
_FEWEST_ENTRIES = 64  # with fewer, any side information costs more than it saves

_REASONS = {VECTOR: "one-dimensional", RAW: "not floating point: kept bit for bit"}

Damping = Callable[[int], tuple[float, float]]
"""k -> damping at the price 16^k, and the ratio of the costs of errors with it and without."""


@dataclass(frozen=True, eq=False)
class Weight:
    """A named tensor, how to load it, and what it is fitted to.

    load: reads the whole tensor, each time it is called. spec: what is fitted. choice: the specs of which `spec` was
    chosen at some price; None where there was no choice. importance: reads the measured importance of its matrices;
    None where there is none. streamed: whether that is read from disk each time and must not be kept in memory. factor:
    multiplies the assumed cost of errors, where `importance` is None; lines: there, whether errors count relative to
    each row ("rows") or column ("columns"), or to the whole (""). known_damping: the damping of the weight that this
    one was made from. kept: why the tensor is kept bit for bit though it could be rounded; else empty. mask: gives the
    entries that the network uses (bool); None for all of them. known_reason: the `reason` that was found elsewhere.
    each: (number) -> the costs of a matrix of a stack, where they differ. format: of a file whose bytes count, or "".
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
    known_reason: str | None = None
    each: Callable[[int], Importance] | None = None
    format: str = ""

    def with_spec(self, spec: Spec) -> "Weight":
        """The same weight, to be fitted to another spec: one for each spec, so that its curve is measured once."""
        return self._respecified(spec)

    @functools.cached_property
    def _respecified(self) -> "Callable[[Spec], Weight]":
        return functools.cache(lambda spec: replace(self, spec=spec, known_damping=self.damping))

    def with_values(self, load: Callable[[], Tensor]) -> "Weight":
        """The weight with other values to be fitted, and the damping of the values before."""
        return replace(self, load=load, known_damping=self.damping)

    @functools.cached_property
    def reason(self) -> str:
        """Why this tensor is not compressed by the user's recipe; empty if it is."""
        return self._found_reason() if self.known_reason is None else self.known_reason

    def _found_reason(self) -> str:
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
        """The user's spec, or another where the tensor is not compressed by it (`reason`)."""
        if self.layout.role == RAW:
            return Dense(format="lossless")
        if self.kept:
            return Codebook(levels=2)  # exact for zeros and ones
        if self.reason:
            return Dense()
        return for_kernels(self.spec) if self.layout.role == KERNEL else self.spec

    def held(self, parts: Sequence[Part]) -> int:
        """Bytes of its parts in memory, or in the file of another tool, where a budget counts these; else 0."""
        return held(parts, self.chosen_spec, self.layout, self.format)

    @functools.cached_property
    def curve(self) -> Curve:
        """Bits and distortion of the whole tensor by price, measured on its sample."""
        entries = self.layout.count * math.prod(self.layout.matrix)

        def measure(price: float) -> Point:
            sample = self._sample
            scale = entries / max(1, sample.entries)
            pairs = zip(sample.targets, sample.importances(), strict=True)
            damped_pairs = [(target, self._damped(importance, price)) for target, importance in pairs]
            parts = [self.chosen_spec.fit(target, importance, price) for target, importance in damped_pairs]
            distortion = sum(
                0.0 if self.layout.role == RAW else importance.distortion(target - part.dense())
                for part, (target, importance) in zip(parts, damped_pairs, strict=True)
            )
            bits = max(
                scale * sum(part.bits for part in parts), held_in_all(parts, self.chosen_spec, self.layout, self.format)
            )
            return Point(bits, scale * distortion)

        if self.layout.role == RAW:  # the price changes nothing
            return Curve(functools.lru_cache(lambda price: measure(1.0)))
        return Curve(measure)

    def level(self, bits: float) -> float | None:
        """The logarithm to base 4 of the price at which entries take so many bits, by the rate of Gaussian sources.

        None without importance from data.
        """
        if self.importance is None or self.reason:
            return None
        target, importance = self._sample.targets[0], self._sample.importances()[0]
        if importance.gram is None or not bool(target.any()):
            return None
        return water_level(target, importance, bits) / 2

    def tensor(self) -> Tensor:
        """The tensor; entries that a mask hides are zero, which takes the fewest bits and has no effect."""
        return self.masked(self.load())

    def masked(self, values: Tensor) -> Tensor:
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

    def matrices(self, price: float) -> Iterator[tuple[Tensor, Importance]]:
        """Every matrix of the tensor, with the importance damped for a price."""
        for i, target in enumerate(self.layout.split(self.tensor())):
            yield target, self._damped(self._importance(target, number=i), price)

    def fit(self, price: float) -> Entry:
        """The parts at a price, decoded from their blob, with their error.

        Raises BadInput for weights that are not finite.
        """
        return self._fit_again(price) if self.layout.entries <= _MOST_ENTRIES_KEPT else self._fit(price)

    @functools.cached_property
    def _fit_again(self) -> Callable[[float], Entry]:
        """`_fit` with a cache of the last few prices, between which small weights alternate near the smallest file."""
        return functools.lru_cache(_FITS_KEPT)(self._fit)

    def _fit(self, price: float) -> Entry:
        targets, spec = self.layout.split(self.tensor()), self.chosen_spec
        importances = (self._importance(target, number=i) for i, target in enumerate(targets))
        fitted = [spec.fit(t, self._damped(own, price), price) for t, own in zip(targets, importances, strict=True)]
        blob = encode(tuple(fitted))
        expected = [part.dense() if math.prod(part.shape) <= _MOST_ENTRIES_COMPARED else None for part in fitted]
        del fitted  # before they are decoded: no more copies of a matrix in memory than needed
        parts = decode(blob, self.layout, self.name)  # the error is that of the file
        lost = energy = 0.0
        for target, before, after in zip(targets, expected, parts, strict=True):
            if self.layout.role == RAW and before is None:
                continue
            restored = after.dense()
            if before is not None and not _same(before, restored):
                raise AssertionError(
                    f"tensor {self.name!r} reads back otherwise than it was written; please report this"
                )
            if self.layout.role != RAW:
                squared_error, squared_norm = _squared_norms(target, restored)
                lost, energy = lost + squared_error, energy + squared_norm
        error = (lost / energy) ** 0.5 if energy > 0 else 0.0
        if not math.isfinite(error):
            raise BadInput(
                f"tensor {self.name!r} holds values that are too large for {self.chosen_spec!r}; "
                "use another recipe, or keep every bit with lossless=True (--lossless)"
            )
        return Entry(self.name, self.layout, parts, blob, self.reason, error)

    @functools.cached_property
    def damping(self) -> Damping:
        """The damping by price, cross-validated on the sample once for every factor of 16 in the price."""
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
        return importance.damped_by(damping).scaled(factor)

    @functools.cached_property
    def _sample(self) -> Sample:
        layout, stride = self.layout, stride_of(self.layout.count)
        positions, count = self._positions, len(range(0, layout.count, stride))
        rows, cols = rows_and_cols(layout.matrix, positions, SAMPLED_ENTRIES // max(1, count))
        some = (
            slice(None) if rows is None else slice(0, int(rows[-1]) + 1, int(rows[1] - rows[0]) if len(rows) > 1 else 1)
        )
        matrices = layout.split(self.tensor(), slice(None, None, stride), some)
        targets = [matrix if cols is None else matrix[:, cols].contiguous() for matrix in matrices]

        def importances() -> list[Importance]:
            return [self._importance(target, rows, cols, i * stride) for i, target in enumerate(targets)]

        return Sample(rows, cols, targets, importances if self.streamed else functools.cache(importances))

    @property
    def _positions(self) -> int:
        """Columns that a sample must keep together: a channel's, or all where a Gram matrix or groups join them."""
        if self.format:
            return self.layout.matrix[1]
        if self.importance is None:
            return math.prod(self.layout.kernel)
        measured, cols = self._given(self.importance), self.layout.matrix[1]
        return cols if measured.gram is not None and len(measured.gram) == cols else measured.positions

    def _importance(
        self, target: Tensor, rows: Tensor | None = None, cols: Tensor | None = None, number: int = 0
    ) -> Importance:
        """The importance of a target; rows, cols: its indices in matrix `number` if it is a sample."""
        if self.importance is not None:
            measured = self._given(self.importance if self.each is None else functools.partial(self.each, number))
            return measured if rows is None or cols is None else measured.select(rows, cols)
        if self.layout.role == RAW:
            return Importance(kernel=self.layout.kernel)
        estimate = assumed(target, self.layout, self.lines).scaled(self.factor)
        # masked entries cannot compensate for the errors of others
        return estimate if self.mask is None else replace(estimate, gram=None)

    def _given(self, read: Callable[[], Importance]) -> Importance:
        """The measured importance, zero where a mask hides errors."""
        return read() if self.mask is None else under_mask(read(), self.mask(), self.layout)


def _squared_norms(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The squared norms of a - b and of a, in pieces, so that temporaries stay in the cache."""
    lost = energy = 0.0
    for x, y in zip(a.reshape(-1).split(_ENTRIES_AT_A_TIME), b.reshape(-1).split(_ENTRIES_AT_A_TIME), strict=True):
        gap = (x - y.to(x.dtype)).reshape(1, -1)
        lost += Importance().inner(gap, gap)
        energy += Importance().inner(x.reshape(1, -1), x.reshape(1, -1))
    return lost, energy


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit."""
    return a.dtype == b.dtype and torch.equal(octets(a), octets(b))
