"""One chunk of rows of a matrix of codes as a stream, under a `Product` model: a pass over every kernel position.

A chunk is: the number of escapes and their residuals (Rice); where scales reach beyond the last table, the raw low
bits (their byte count first); the rANS stream (its byte count first); a CRC-32 of the codes. A kernel position is one
segment of the stream, decoded for all kernels of the chunk at once.
"""

import zlib
from typing import TYPE_CHECKING

import numpy as np

from waterfill.coding import coder, density
from waterfill.coding.product import Product, center, neighbors, predict, shifts

if TYPE_CHECKING:
    from waterfill.coding.stream import Reader, Sink

CHUNK = 1 << 20
"""About how many codes make a chunk."""
LIMIT = 1 << 24
"""Codes lie strictly between -LIMIT and LIMIT."""


def rows_per_chunk(cols: int) -> int:
    """Rows of every chunk but the last, for a matrix of so many columns."""
    return max(1, CHUNK // cols)


def checksum(codes: np.ndarray) -> bytes:
    """CRC-32 of codes as int8 where all of them fit, else as little-endian int32."""
    narrow = codes.dtype == np.int8 or (-128 <= codes.min() and codes.max() <= 127)
    return zlib.crc32(np.ascontiguousarray(codes, dtype="i1" if narrow else "<i4")).to_bytes(4, "little")


class Tables:
    """The tables a model can select, the scale index of every entry, and the mean of every pass."""

    def __init__(self, model: Product, rows: int, channels: int, kernel: tuple[int, ...]) -> None:
        self._factors = model.factors(rows, channels)
        self._taps = model.taps
        self._near = neighbors(kernel) if model.taps is not None else ()
        low, high = (sum(int(pick(f)) for f in self._factors) for pick in (np.min, np.max))
        last = density.SCALES - 1
        self.beyond = high > last
        self._low = int(np.clip(low, 0, last - 7 if self.beyond else last))
        self._high = last if self.beyond else max(high, self._low)
        self._phases = model.phases
        self.freq = density.family(model.shape, model.phases)[self._low : self._high + 1].reshape(-1, 256)
        self._reach = int((self.freq[:, :128] > 0).sum(1).min()) - 1

    def mean(self, earlier: list[np.ndarray]) -> "tuple[np.ndarray | int, np.ndarray | int]":
        """The next pass's mean as a whole number and a phase, from the planes [rows, channels] before it."""
        p = len(earlier)
        if self._taps is None or p == 0:
            return 0, 0
        start = sum(len(near) for near in self._near[:p])
        return center(predict(earlier, self._near[p], self._taps[start : start + len(self._near[p])]))

    def place(self, rows: slice, position: int, phase: "np.ndarray | int") -> tuple[np.ndarray, "np.ndarray | None"]:
        """The table of each entry of a pass (uint16, flat), and how many low bits go raw (None: none anywhere)."""
        first, second, third = self._factors
        scale = (first[rows] + third[position])[:, None] + second
        shift = shifts(scale) if self.beyond else None
        if shift is not None:
            scale, phase = scale - 8 * shift, np.where(shift > 0, 0, phase)
        index = np.clip(scale, self._low, self._high) - self._low
        return (index * self._phases + np.abs(phase)).astype(np.uint16).ravel(), shift

    def escaped(self, symbol: np.ndarray, select: np.ndarray) -> np.ndarray:
        """Indices of the symbols (flat) that their tables cannot code."""
        far = np.flatnonzero(np.abs(symbol) > self._reach)
        wide = np.abs(symbol[far]) > 127
        return far[wide | (self.freq[select[far], symbol[far] & 255] == 0)]


def write(planes: list[np.ndarray], tables: Tables, rows: slice, lanes: int, out: "Sink") -> None:
    """Write a chunk, given as one plane of codes [rows, channels] (int32) for each kernel position."""
    segments, escapes, low = [], [], []
    for p, plane in enumerate(planes):
        whole, phase = tables.mean(planes[:p])
        residual = np.where(phase < 0, whole - plane, plane - whole)
        select, shift = tables.place(rows, p, phase)
        symbol = residual if shift is None else (residual + _half(shift)) >> shift
        symbol = symbol.ravel().copy()
        where = tables.escaped(symbol, select)
        escapes.append(residual.ravel()[where])
        symbol[where] = density.ESCAPE
        if shift is not None:
            low.append(_low_bits(residual + _half(shift), _kept(shift, where)))
        segments.append((symbol.astype(np.int8), select))
    escaped = np.concatenate(escapes)
    out.uint(len(escaped))
    out.ints(escaped)
    if tables.beyond:
        out.uint(sum(map(len, low)))
        out.raw(b"".join(low))
    stream = coder.encode(segments, tables.freq, lanes)
    out.uint(len(stream))
    out.raw(stream)
    out.raw(checksum(np.stack(planes, axis=2)))


def read(src: "Reader", tables: Tables, rows: slice, size: tuple[int, int], lanes: int) -> np.ndarray:
    """The codes [rows, channels, positions] of a chunk, of a dtype that holds them; `size` is the last two."""
    channels, positions = size
    count = rows.stop - rows.start
    source = _Source(src, tables, count * channels * positions, lanes)
    planes: list[np.ndarray] = []
    for _ in range(positions):
        planes.append(source.plane(planes, rows, channels))
    codes = np.stack(planes, axis=2) if positions > 1 else planes[0][:, :, None]
    source.finish(codes)
    return codes


def _half(shift: np.ndarray) -> np.ndarray:
    """Half a bin, so that the bins of 2^shift codes lie around the multiples of it."""
    return np.where(shift > 0, 1 << np.maximum(shift - 1, 0), 0)


def _kept(shift: np.ndarray, escaped: np.ndarray) -> np.ndarray:
    """Shifts (flat) with those of escaped entries zero: their residual is whole already."""
    kept = shift.ravel().copy()
    kept[escaped] = 0
    return kept


def _low_bits(values: np.ndarray, shift: np.ndarray) -> bytes:
    """Bit planes, lowest first: bit b of every entry whose shift is over b; each plane padded to a byte."""
    flat = values.ravel()
    return b"".join(np.packbits(flat[shift > b] >> b & 1).tobytes() for b in range(int(shift.max())))


class _Source:
    """The side data of a chunk, taken up pass by pass while the stream is decoded."""

    def __init__(self, src: "Reader", tables: Tables, entries: int, lanes: int) -> None:
        self._tables = tables
        self._src = src
        self._escapes = src.ints(src.uint(entries))
        self._low = np.frombuffer(src.raw(src.uint(4 * entries)), np.uint8) if tables.beyond else np.zeros(0, np.uint8)
        self._decoder = coder.Decoder(src.raw(src.uint(1 << 40)), tables.freq, lanes)

    def plane(self, earlier: list[np.ndarray], rows: slice, channels: int) -> np.ndarray:
        """The next pass [rows, channels], int32 (int8 where nothing but plain symbols is left to do)."""
        whole, phase = self._tables.mean(earlier)
        select, shift = self._tables.place(rows, len(earlier), phase)
        symbol = self._decoder.decode(select)
        plain = len(self._escapes) == 0 and shift is None and not earlier and isinstance(whole, int)
        if plain:
            return symbol.reshape(-1, channels)
        residual = symbol.astype(np.int32)
        where = np.flatnonzero(symbol == density.ESCAPE)
        if len(where) > len(self._escapes):
            raise self._src.fail("more escapes than their values")
        if shift is not None:
            residual = (residual << shift.ravel()) + self._take_low(_kept(shift, where)) - _half(shift).ravel()
        residual[where], self._escapes = self._escapes[: len(where)], self._escapes[len(where) :]
        residual = residual.reshape(-1, channels)
        return np.where(phase < 0, whole - residual, residual + whole)

    def _take_low(self, shift: np.ndarray) -> np.ndarray:
        value = np.zeros(len(shift), dtype=np.int32)
        for b in range(int(shift.max())):
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
        if self._src.raw(4) != checksum(codes):
            raise self._src.fail("the checksum of decoded codes is wrong")
