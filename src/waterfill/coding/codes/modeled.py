"""One chunk of rows of a matrix of codes as a stream, under a `DensityModel` model: a pass over every kernel position.

A chunk is: the number of escapes and their residuals (Rice); where scales reach beyond the last table, the raw low
bits (their byte count first); the rANS stream (its byte count first); a CRC-32 of the codes. A kernel position is one
segment of the stream, decoded for all kernels of the chunk at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from waterfill.coding import density, rans
from waterfill.coding.chunking import LIMIT, MOST_BYTES, checksum, narrow, row_chunks, stream_overhead
from waterfill.coding.codes.expected import Seen, add_expected
from waterfill.coding.codes.plan import Frame, Frequencies, Plan
from waterfill.coding.model import fitting
from waterfill.coding.model.density_model import (
    DensityModel,
    center,
    half,
    neighbors,
    predict,
    shifts,
)
from waterfill.coding.model.serialized import read_model, write_model
from waterfill.coding.stream import Reader, Sink

_FARTHEST = 1 << 28  # from a mean of 24-bit codes to a code


class Tables:
    """The tables a model can select, the scale index of every entry, and the mean of every pass."""

    def __init__(self, model: DensityModel, rows: int, channels: int, kernel: tuple[int, ...]) -> None:
        low, high = model.extent(rows, channels)
        last = density.SCALES - 1
        self._factors = tuple(factor.astype(np.int16) for factor in model.factors(rows, channels))
        self.passes = len(model.positions)
        self._taps = model.taps
        self._near = neighbors(kernel) if model.taps is not None else ()
        self._phases = model.phases
        self.beyond = high > last
        self._low = min(max(low, 0), last - 7 if self.beyond else last)
        self._high = last if self.beyond else max(high, self._low)
        self._negative = low < 0
        self.freq = density.family(model.shape, model.phases)[self._low : self._high + 1].reshape(-1, 256)
        coded = self.freq > 0
        self._reach = int(min(coded[:, 1:128].sum(1).min(), coded[:, 129:].sum(1).min()))  # of every table, both ways

    def mean(self, earlier: list[np.ndarray]) -> "tuple[np.ndarray | int, np.ndarray | int]":
        """The next pass's mean as a whole number and a phase, from the planes [rows, channels] before it."""
        p = len(earlier)
        if self._taps is None or p == 0:
            return 0, 0
        start = sum(len(near) for near in self._near[:p])
        return center(predict(earlier, self._near[p], self._taps[start : start + len(self._near[p])]))

    def place(self, rows: slice, position: int, phase: "np.ndarray | int") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The table of each entry of a pass (uint16, flat), whose low bits go raw (indices, flat), and how many."""
        first, second, third = self._factors
        index = ((first[rows] + (third[position] - np.int16(self._low)))[:, None] + second).ravel()
        far = np.flatnonzero(index > self._high - self._low) if self.beyond else np.zeros(0, dtype=np.int64)
        shift = shifts(index[far].astype(np.int32) + self._low)
        index[far] -= (8 * shift).astype(np.int16)
        if self._negative:
            np.maximum(index, 0, out=index)
        if self._phases > 1:
            distance = np.abs(np.broadcast_to(phase, (rows.stop - rows.start, len(second)))).ravel()
            distance[far] = 0
            index = index * self._phases + distance
        return index.astype(np.uint16), far, shift

    def escaped(self, symbol: np.ndarray, select: np.ndarray) -> np.ndarray:
        """Indices of the symbols (flat) that their tables cannot code."""
        far = np.flatnonzero((symbol > self._reach) | (symbol < -self._reach))
        beyond = symbol[far].astype(np.int32)
        return far[(np.abs(beyond) > 127) | (self.freq[select[far], beyond & 255] == 0)]


def write_chunk(codes: np.ndarray, tables: Tables, rows: slice, lanes: int, out: Sink) -> None:
    """Write the codes [rows, channels, positions] of a chunk."""
    segments, escapes, low = [], [], [np.zeros(0, np.uint8)]
    planes: list[np.ndarray] = []
    for p in range(codes.shape[2]):
        plane = codes[:, :, p] if codes.shape[2] == 1 else codes[:, :, p].astype(np.int32)
        whole, phase = tables.mean(planes)
        planes.append(plane)
        residual = (plane if isinstance(whole, int) else np.where(phase < 0, whole - plane, plane - whole)).ravel()
        select, far, shift = tables.place(rows, p, phase)
        symbol = residual.copy()
        symbol[far] = (residual[far] + half(shift)) >> shift
        where = tables.escaped(symbol, select)
        escapes.append(residual[where].astype(np.int64))
        symbol = symbol.astype(np.int8)
        symbol[where] = density.ESCAPE
        kept = symbol[far] != density.ESCAPE
        low.append(_low_bits((residual[far] + half(shift))[kept], shift[kept]))
        segments.append((symbol, select))
    escaped = np.concatenate(escapes)
    out.uint(len(escaped))
    out.ints(escaped)
    if tables.beyond:
        raw = np.concatenate(low).tobytes()
        out.uint(len(raw))
        out.raw(raw)
    stream = rans.encode(segments, tables.freq, lanes)
    out.uint(len(stream))
    out.raw(stream)
    out.raw(checksum(codes))


def read_chunk(src: Reader, tables: Tables, rows: slice, size: tuple[int, int], lanes: int) -> np.ndarray:
    """The codes [rows, channels, positions] of a chunk, of a dtype that holds them; `size` is the last two."""
    channels, positions = size
    source = _Source(src, tables, (rows.stop - rows.start) * channels * positions, lanes)
    planes: list[np.ndarray] = []
    for _ in range(positions):
        planes.append(source.plane(planes, rows, channels))
    codes = np.stack(planes, axis=2) if positions > 1 else planes[0][:, :, None]
    source.finish(codes)
    return codes


def _low_bits(values: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Bit planes, lowest first: bit b of every entry whose shift is over b; each plane padded to a byte (uint8)."""
    digits = (values[shift > b] >> b & 1 for b in range(int(shift.max(initial=0))))
    return np.concatenate([np.zeros(0, np.uint8), *(np.packbits(d.astype(np.uint8)) for d in digits)])


class _Source:
    """The side data of a chunk, taken up pass by pass while the stream is decoded."""

    def __init__(self, src: Reader, tables: Tables, entries: int, lanes: int) -> None:
        self._tables = tables
        self._src = src
        self._escapes = src.ints(src.uint(entries))
        if len(self._escapes) and np.abs(self._escapes).max() > _FARTHEST:
            raise src.fail("an escaped code is out of range")
        self._low = np.frombuffer(src.raw(src.uint(MOST_BYTES)) if tables.beyond else b"", np.uint8)
        self._decoder = rans.Decoder(src.raw(src.uint(MOST_BYTES)), tables.freq, lanes)

    def plane(self, earlier: list[np.ndarray], rows: slice, channels: int) -> np.ndarray:
        """The next pass [rows, channels]: int32, or int8 where there is only one and it fits."""
        whole, phase = self._tables.mean(earlier)
        select, far, shift = self._tables.place(rows, len(earlier), phase)
        symbol = self._decoder.decode(select)
        where = np.flatnonzero(symbol == density.ESCAPE)
        if len(where) > len(self._escapes):
            raise self._src.fail("more escapes than their values")
        escapes, self._escapes = self._escapes[: len(where)], self._escapes[len(where) :]
        in_place = self._tables.passes == 1 and len(far) == 0 and np.abs(escapes).max(initial=0) <= 127
        residual = symbol if in_place else symbol.astype(np.int32)
        kept = symbol[far] != density.ESCAPE
        far, shift = far[kept], shift[kept]
        residual[far] = (residual[far] << shift) + self._take_low(shift) - half(shift)
        residual[where] = escapes
        residual = residual.reshape(-1, channels)
        return residual if isinstance(whole, int) else np.where(phase < 0, whole - residual, residual + whole)

    def _take_low(self, shift: np.ndarray) -> np.ndarray:
        value = np.zeros(len(shift), dtype=np.int32)
        for b in range(int(shift.max(initial=0))):
            where = np.flatnonzero(shift > b)
            size = (len(where) + 7) // 8
            if size > len(self._low):
                raise self._src.fail("the raw low bits end early")
            value[where] |= np.unpackbits(self._low[:size])[: len(where)].astype(np.int32) << b
            self._low = self._low[size:]
        return value

    def finish(self, codes: np.ndarray) -> None:
        """Prove that everything was used up and that the codes [rows, channels, positions] are those written."""
        self._decoder.finish()
        if len(self._escapes) or len(self._low):
            raise self._src.fail("side data of a chunk is left over")
        if codes.max() >= LIMIT or codes.min() <= -LIMIT or self._src.raw(4) != checksum(codes):
            raise self._src.fail("the checksum of decoded codes is wrong")


@dataclass(frozen=True, eq=False)
class Modeled(Plan):
    """Codes under the product-scale densities of a model; kernel: as `spatial` returns it."""

    model: DensityModel
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

    def expect(self, rows: slice, into: Frequencies) -> None:
        cube = self.codes.reshape(len(self.codes), -1, len(self.model.positions))
        tables = Tables(self.model, len(cube), cube.shape[1], self.kernel)
        planes: list[np.ndarray] = []
        for p in range(cube.shape[2]):
            plane = cube[rows, :, p].astype(np.int32)
            whole, phase = tables.mean(planes)
            planes.append(plane)
            select, far, shift = tables.place(rows, p, phase)
            raw = np.zeros(len(select), dtype=np.int64)
            raw[far] = shift
            sign = np.where(np.broadcast_to(phase, plane.shape) < 0, -1, 1).ravel()
            seen = Seen(select, np.broadcast_to(whole, plane.shape).ravel().astype(np.int64), sign, raw)
            add_expected(into, seen, tables.freq)

    def content(self, out: Sink) -> None:
        write_model(self.model, out)
        rows, cols = self.codes.shape
        cube = self.codes.reshape(rows, -1, len(self.model.positions))
        tables = Tables(self.model, rows, cube.shape[1], self.kernel)
        for part in row_chunks(rows, cols):
            write_chunk(cube[part], tables, part, self.lanes, out)

    @staticmethod
    def read(src: Reader, frame: Frame) -> np.ndarray:
        positions = int(np.prod(frame.kernel))
        channels = frame.cols // positions
        model = read_model(src, (frame.rows, channels, positions), frame.kernel)
        tables = Tables(model, frame.rows, channels, frame.kernel)
        return by_chunks(frame, lambda part: read_chunk(src, tables, part, (channels, positions), frame.lanes))


def by_chunks(frame: Frame, read_rows: Callable[[slice], np.ndarray]) -> np.ndarray:
    """Codes [rows, cols] of the smallest dtype, from a function that reads the codes of a chunk's rows."""
    codes = np.empty((frame.rows, frame.cols), dtype=np.int8)
    for part in row_chunks(frame.rows, frame.cols):
        piece = read_rows(part)
        piece = piece if piece.dtype == np.int8 else narrow(piece)
        codes = codes.astype(np.promote_types(codes.dtype, piece.dtype), copy=False)
        codes[part] = piece.reshape(-1, frame.cols)
    return codes
