"""A matrix of codes as bytes: the shortest of a few ways to write it.

The first number says how: all equal; the product-scale density model, alone or along a trellis; a histogram; plain
bits; or which rows repeat earlier ones, and then the distinct rows in one of the other ways. `docs/format.md` has it to
the bit.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from waterfill.coding import density, rans, rice, trellis
from waterfill.coding.chunking import chunk_overhead, narrow, row_chunks, stream_overhead
from waterfill.coding.codes import modeled, trellised
from waterfill.coding.codes.plain import Constant, Histogram, Packed
from waterfill.coding.codes.plan import Frame, Plan
from waterfill.coding.model import fitting
from waterfill.coding.model.density_model import MOST_SCALE, MOST_TAPS, Product, neighbors, spatial
from waterfill.errors import BadInput

if TYPE_CHECKING:
    from waterfill.coding.stream import Reader, Sink

__all__ = ["Plan", "narrow", "plan", "read", "spatial", "write"]

_LARGE = 1 << 21  # beyond this many codes the histogram is tried only where the density model does poorly
_FARTHEST = 255


def plan(codes: np.ndarray, kernel: tuple[int, ...] = (), states: int = 0) -> Plan:
    """The shortest way to write integer codes [rows, cols], columns = channels * prod(kernel).

    With `states` they run along the trellis of so many, and are written so unless all are equal; ValueError if they
    leave it.
    """
    codes = narrow(np.asarray(codes))
    if codes.ndim != 2:
        raise BadInput(f"codes form a matrix [rows, cols]; found {codes.ndim} dimensions")
    if not codes.size or codes.min() == codes.max():
        return Constant(codes, 24.0, 1)
    if states:
        return Trellised.along(codes, spatial(codes.shape[1], kernel), states)
    whole = _distinct_rows(codes)
    if whole is None:
        return _shortest(codes, kernel)
    first, which = whole
    inner = plan(codes[first], kernel)
    repeated = Repeated(codes, inner.bits + 24 + _pointer_bits(which), 1, inner, which)
    return min(repeated, _shortest(codes, kernel), key=lambda p: p.bits)


def write(plan: Plan, out: "Sink") -> None:
    """Write the planned codes; the reader is told rows, columns and kernel by the part that holds them."""
    out.uint(plan.mode | (plan.lanes.bit_length() - 1) << 3)
    plan.write(out)


def read(src: "Reader", rows: int, cols: int, kernel: tuple[int, ...]) -> np.ndarray:
    """Codes [rows, cols] that `write` wrote. Raises CorruptFile; the caller has claimed the entries."""
    mode, lanes = _read_mode(src)
    if rows * cols == 0 and mode is not Constant:
        raise src.fail("codes of an empty matrix")
    return mode.read(src, Frame(rows, cols, spatial(cols, kernel), lanes))


def _read_mode(src: "Reader") -> tuple[type[Plan], int]:
    number = src.uint(127)
    mode, lanes = number & 7, 1 << (number >> 3)
    if mode >= len(_MODES) or lanes > rans.MAX_LANES:
        raise src.fail(f"codes written in mode {mode} with {lanes} lanes")
    return _MODES[mode], lanes


def _shortest(codes: np.ndarray, kernel: tuple[int, ...]) -> Plan:
    found: list[Plan] = [Modeled.plan(codes, spatial(codes.shape[1], kernel)), Packed.plan(codes)]
    span = int(codes.max()) - int(codes.min())
    if span < 255 and (codes.size < _LARGE or found[0].bits > 0.98 * found[1].bits):
        found.append(Histogram.plan(codes))
    return min(found, key=lambda p: p.bits)


@dataclass(frozen=True, eq=False)
class Modeled(Plan):
    """Codes under the product-scale densities of a model; kernel: as `spatial` returns it."""

    model: Product
    kernel: tuple[int, ...]
    mode: ClassVar[int] = 1

    @classmethod
    def plan(cls, codes: np.ndarray, kernel: tuple[int, ...]) -> "Modeled":
        """For codes that are not all equal."""
        cube = codes.reshape(codes.shape[0], -1, int(np.prod(kernel)))
        model = fitting.fit(cube, kernel)
        bits = fitting.total_bits(cube, kernel, model)
        lanes, overhead = stream_overhead(codes.shape, bits)
        return cls(codes, bits + fitting.side_bits(model) + overhead + 16, lanes, model, kernel)

    def write(self, out: "Sink") -> None:
        _write_model(self.model, out)
        rows, cols = self.codes.shape
        cube = self.codes.reshape(rows, -1, len(self.model.positions))
        tables = modeled.Tables(self.model, rows, cube.shape[1], self.kernel)
        for part in row_chunks(rows, cols):
            modeled.write(cube[part], tables, part, self.lanes, out)

    @staticmethod
    def read(src: "Reader", frame: Frame) -> np.ndarray:
        positions = int(np.prod(frame.kernel))
        channels = frame.cols // positions
        model = _read_model(src, (frame.rows, channels, positions), frame.kernel)
        tables = modeled.Tables(model, frame.rows, channels, frame.kernel)
        return _together(frame, lambda part: modeled.read(src, tables, part, (channels, positions), frame.lanes))


@dataclass(frozen=True, eq=False)
class Trellised(Modeled):
    """Codes under the densities of a model that also run along the trellis of so many states."""

    states: int
    mode: ClassVar[int] = 5

    @classmethod
    def along(cls, codes: np.ndarray, kernel: tuple[int, ...], states: int) -> "Trellised":
        """For codes that are not all equal. Raises ValueError if they leave the trellis."""
        cube = codes.reshape(codes.shape[0], -1, int(np.prod(kernel)))
        trellis.check(cube, states)
        model = fitting.fit(cube, kernel, states)
        lanes = trellis.lanes(*cube.shape)
        bits = fitting.total_bits(cube, kernel, model, states) + fitting.side_bits(model)
        return cls(codes, bits + chunk_overhead(codes.shape, lanes) + 24, lanes, model, kernel, states)

    def write(self, out: "Sink") -> None:
        out.uint(self.states.bit_length() - 1)
        _write_model(self.model, out)
        rows, cols = self.codes.shape
        cube = self.codes.reshape(rows, -1, len(self.model.positions))
        tables = trellised.Paths(self.model, cube.shape[:2], self.kernel, self.states, self.lanes)
        for part in row_chunks(rows, cols):
            trellised.write(cube[part], tables, part, out)

    @staticmethod
    def read(src: "Reader", frame: Frame) -> np.ndarray:
        positions = int(np.prod(frame.kernel))
        channels = frame.cols // positions
        states = 1 << src.uint(8)
        if states not in trellis.STATES or channels % frame.lanes:
            raise src.fail(f"a trellis of {states} states over {channels} channels in {frame.lanes} lanes")
        model = _read_model(src, (frame.rows, channels, positions), frame.kernel)
        tables = trellised.Paths(model, (frame.rows, channels), frame.kernel, states, frame.lanes)
        return _together(frame, lambda part: trellised.read(src, tables, part, (channels, positions)))


def _together(frame: Frame, read_rows: Callable[[slice], np.ndarray]) -> np.ndarray:
    """Codes [rows, cols] of the smallest dtype, from a function that reads the codes of a chunk's rows."""
    codes = np.empty((frame.rows, frame.cols), dtype=np.int8)
    for part in row_chunks(frame.rows, frame.cols):
        piece = read_rows(part)
        piece = piece if piece.dtype == np.int8 else narrow(piece)
        codes = codes.astype(np.promote_types(codes.dtype, piece.dtype), copy=False)
        codes[part] = piece.reshape(-1, frame.cols)
    return codes


def _write_model(model: Product, out: "Sink") -> None:
    vectors = (model.rows, model.channels, model.taps)
    out.uint(model.shape | sum((v is not None) << (4 + i) for i, v in enumerate(vectors)))
    out.uint(model.base)
    for vector in (*vectors, model.positions if len(model.positions) > 1 else None):
        if vector is not None:
            out.ints(vector)


def _read_model(src: "Reader", size: tuple[int, int, int], kernel: tuple[int, ...]) -> Product:
    flags = src.uint(127)
    near = neighbors(kernel) if kernel else ()
    shape, lengths = flags & 15, (size[0], size[1], sum(map(len, near)))
    if shape >= len(density.SHAPES) or (flags >> 6 and not kernel):
        raise src.fail(f"a density model with flags {flags}")
    base = src.uint(MOST_SCALE)
    rows, channels, taps = (src.ints(n) if flags >> (4 + i) & 1 else None for i, n in enumerate(lengths))
    places = src.ints(size[2]) if kernel else np.zeros(1, dtype=np.int64)
    if any(v is not None and np.abs(v).max(initial=0) > _FARTHEST for v in (rows, channels, places, taps)):
        raise src.fail("a factor or tap of the density model is out of range")
    if taps is not None and any(np.abs(t).sum() > MOST_TAPS for t in np.split(taps, np.cumsum([*map(len, near)]))):
        raise src.fail("the taps of the density model are too large")
    model = Product(shape, base, rows, channels, places, taps)
    if model.extent(size[0], size[1])[1] > MOST_SCALE:
        raise src.fail("a scale of the density model is out of range")
    return model


@dataclass(frozen=True, eq=False)
class Repeated(Plan):
    """Which of its distinct rows each row is: inner holds them [distinct, cols], which [rows] names one for each."""

    inner: Plan
    which: np.ndarray
    mode: ClassVar[int] = 4

    def write(self, out: "Sink") -> None:
        out.uint(len(self.inner.codes))
        out.ints(_steps_back(self.which))
        out.claim(self.inner.entries)
        write(self.inner, out)

    @staticmethod
    def read(src: "Reader", frame: Frame) -> np.ndarray:
        distinct = src.uint(frame.rows)
        steps = src.ints(frame.rows)
        which = np.where(steps == 0, np.cumsum(steps == 0), steps) - 1
        if steps.min() < 0 or which.max() >= distinct:
            raise src.fail("a row repeats a row that is not there")
        src.claim(distinct * frame.cols)
        mode, lanes = _read_mode(src)
        if mode is Repeated:
            raise src.fail("repeated rows inside repeated rows")
        return mode.read(src, replace(frame, rows=distinct, lanes=lanes))[which]


_MODES: tuple[type[Plan], ...] = (Constant, Modeled, Histogram, Packed, Repeated, Trellised)


def _distinct_rows(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Where each distinct row first is, and which of these every row is; None if fewer than one in twenty repeats."""
    rows, cols = codes.shape
    if rows < 8 or cols < 8:
        return None
    for seen in (codes[:, :64], codes) if cols > 64 else (codes,):
        records = np.ascontiguousarray(seen)
        records = records.view(np.dtype((np.void, records.shape[1] * records.itemsize))).ravel()
        _, first, which = np.unique(records, return_index=True, return_inverse=True)
        if len(first) > 0.95 * rows:
            return None
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[which.ravel()]


def _steps_back(which: np.ndarray) -> np.ndarray:
    """For every row: 0 if it is the next new one, else 1 + which of the rows known so far it repeats."""
    known = np.maximum.accumulate(np.concatenate([[-1], which]))
    return np.where(which > known[:-1], 0, which + 1)


def _pointer_bits(which: np.ndarray) -> float:
    steps = _steps_back(which)
    folded = rice.zigzag(steps - rice.center_of(steps))
    return float(rice.rice_bits(folded, rice.best_parameter(folded)))
