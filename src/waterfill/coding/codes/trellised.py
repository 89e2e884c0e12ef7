"""One chunk of rows of codes that run along a trellis as a stream: like those of `modeled`, but every entry's
table also depends on the state of its path, which the coder's lane machine follows while it decodes.

A chunk is: the number of escapes and their values (Rice); the rANS stream (its byte count first); a CRC-32 of the
codes.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from waterfill.coding import density, rans, trellis
from waterfill.coding.chunking import LIMIT, MOST_BYTES, checksum, chunk_overhead, row_chunks
from waterfill.coding.codes.expected import Seen, add_expected
from waterfill.coding.codes.modeled import by_chunks
from waterfill.coding.codes.plan import Frame, Frequencies, Plan
from waterfill.coding.model import fitting
from waterfill.coding.model.density_model import DensityModel, center
from waterfill.coding.model.path_means import half_means
from waterfill.coding.model.serialized import read_model, write_model
from waterfill.coding.stream import Reader, Sink

_ODD = 127  # the escape of an odd symbol that its table cannot code; `density.ESCAPE` is even
_REACH = 126
_PERIOD = 16  # means are distinguished modulo two whole k, so that a symbol keeps the lowest bit of its k
_FARTHEST = 1 << 28


class Paths:
    """The tables of a model on a trellis, those of parity 0 before those of parity 1, and the paths they serve."""

    def __init__(
        self, model: DensityModel, size: tuple[int, int], kernel: tuple[int, ...], states: int, lanes: int
    ) -> None:
        low, high = (min(max(index, 0), density.SCALES - 1) for index in model.extent(*size))
        first, second, self._third = (factor.astype(np.int16) for factor in model.factors(*size))
        self._first, self._second = first, second.reshape(-1, 1, lanes)
        self._low, self._high = low, high
        self._means = _PERIOD if model.taps is not None else 1
        self.taps, self.kernel, self.lanes, self.states = model.taps, kernel, lanes, states
        halves = [[_moved(model.shape, low, high, m - 4 * b) for m in range(self._means)] for b in (0, 1)]
        self.freq = np.concatenate([np.stack(half, axis=1).reshape(-1, 256) for half in halves])
        self.half = len(self.freq) // 2
        code = trellis.trellis(states)
        self.machine = rans.Machine(code.transition, code.parity.astype(np.uint16) * np.uint16(self.half))

    def place(self, rows: slice, position: int, mean: np.ndarray) -> np.ndarray:
        """The table of every entry of a pass where its parity is 0: uint16 [n], in the order of the paths."""
        offset = self._first[rows, None] + self._third[position]
        index = np.clip(offset + self._second, self._low, self._high).astype(np.uint16).ravel()
        index -= np.uint16(self._low)
        return index if self._means == 1 else index * np.uint16(_PERIOD) + (mean & _PERIOD - 1).astype(np.uint16)


def _moved(shape: int, low: int, high: int, mean: int) -> np.ndarray:
    """Tables [scales from low to high, 256] (uint16) of a density whose mean is so many eighths."""
    whole, phase = (int(part) for part in center(np.array(mean)))
    symbol = np.arange(-_REACH, _REACH + 1)
    residual = whole - symbol if phase < 0 else symbol - whole
    inside = np.abs(residual) < 128
    tables = density.family(shape)[low : high + 1, abs(phase)]
    moved = np.zeros_like(tables)
    moved[:, symbol[inside] & 255] = tables[:, residual[inside] & 255]
    lost = (1 << density.PRECISION) - moved.sum(axis=1, dtype=np.int64)  # to the escapes, one slot or more
    likeliest = np.argmax(moved, axis=1)
    moved[np.arange(len(moved)), likeliest] -= (lost < 2).astype(np.uint16)
    lost = np.maximum(lost, 2).astype(np.uint16)
    moved[:, _ODD] = lost // 2
    moved[:, density.ESCAPE & 255] = lost - lost // 2
    return moved


def write_chunk(codes: np.ndarray, paths: Paths, rows: slice, out: Sink) -> None:
    """Write the codes [rows, channels, positions] of a chunk. Raises ValueError if they leave the trellis."""
    planes = [plane.astype(np.int32) for plane in trellis.along(codes, paths.lanes)]
    segments, escapes = [], []
    for p, mean in enumerate(half_means(planes, paths.kernel, paths.taps)):
        select = paths.place(rows, p, mean)
        value = (planes[p] >> 1) - 2 * (mean >> 4)
        parity = planes[p] & 1
        table = select + parity.astype(np.uint16) * np.uint16(paths.half)
        far = (np.abs(value) > _REACH) | (paths.freq[table, value & 255] == 0)
        symbol = np.where(far, np.where(value & 1, _ODD, density.ESCAPE), value).astype(np.int8)
        if (trellis.parities(symbol, paths.lanes, paths.states) != parity).any():
            raise ValueError(f"the codes of rows {rows.start} on leave the trellis of {paths.states} states")
        escapes.append(value[far] >> 1)
        segments.append((symbol, select))
    escaped = np.concatenate(escapes)
    out.uint(len(escaped))
    out.ints(escaped)
    stream = rans.encode(segments, paths.freq, paths.lanes, paths.machine)
    out.uint(len(stream))
    out.raw(stream)
    out.raw(checksum(codes))


def read_chunk(src: Reader, paths: Paths, rows: slice, size: tuple[int, int]) -> np.ndarray:
    """The codes [rows, channels, positions] of a chunk, of a dtype that holds them; `size` is the last two."""
    entries = (rows.stop - rows.start) * size[0]
    escapes = src.ints(src.uint(entries * size[1]))
    if len(escapes) and np.abs(escapes).max() > _FARTHEST:
        raise src.fail("an escaped code is out of range")
    decoder = rans.Decoder(src.raw(src.uint(MOST_BYTES)), paths.freq, paths.lanes, paths.machine)
    planes: list[np.ndarray] = []
    for p, mean in enumerate(half_means(planes, paths.kernel, paths.taps)):
        symbol = decoder.decode(paths.place(rows, p, mean))
        value, escapes = _values(src, symbol, escapes, size[1] == 1)
        odd = trellis.parities(symbol, paths.lanes, paths.states)
        if mean.any():
            value = value + 2 * (mean >> 4)
        planes.append(2 * value + odd.view(np.int8))
    decoder.finish()
    codes = trellis.across(np.stack(planes), rows.stop - rows.start, paths.lanes)
    if len(escapes):
        raise src.fail("escaped codes of a chunk are left over")
    if codes.max() >= LIMIT or codes.min() <= -LIMIT or src.raw(4) != checksum(codes):
        raise src.fail("the checksum of decoded codes is wrong")
    return codes


def _values(src: Reader, symbol: np.ndarray, escapes: np.ndarray, single_pass: bool) -> tuple[np.ndarray, np.ndarray]:
    """Symbols as numbers with escapes put in, and the escapes that are left.

    The numbers are int32, or where there is but one pass the smallest dtype that holds the codes.
    """
    where = np.flatnonzero((symbol == density.ESCAPE) | (symbol == _ODD))
    if len(where) > len(escapes):
        raise src.fail("more escapes than their values")
    escaped = 2 * escapes[: len(where)] + (symbol[where] & 1)
    farthest = max(int(symbol.max()), -int(symbol.min()), int(np.abs(escaped).max(initial=0)))
    fitting = (kind for kind in (np.int8, np.int16) if single_pass and farthest < np.iinfo(kind).max // 2)
    value = symbol.astype(next(fitting, np.int32))
    value[where] = escaped
    return value, escapes[len(where) :]


@dataclass(frozen=True, eq=False)
class Trellised(Plan):
    """Codes under the densities of a model that also run along the trellis of so many states.

    kernel: as `spatial` returns it.
    """

    model: DensityModel
    kernel: tuple[int, ...]
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

    def expect(self, rows: slice, into: Frequencies) -> None:
        cube = self.codes.reshape(len(self.codes), -1, len(self.model.positions))
        paths = Paths(self.model, cube.shape[:2], self.kernel, self.states, self.lanes)
        planes = [plane.astype(np.int32) for plane in trellis.along(cube[rows], self.lanes)]
        for p, mean in enumerate(half_means(planes, self.kernel, paths.taps)):
            parity = planes[p].astype(np.int64) & 1
            select = paths.place(rows, p, mean).astype(np.int64) + parity * paths.half
            center = 4 * (mean.astype(np.int64) >> 4) + parity
            seen = Seen(select, center, np.full(len(select), 2), np.zeros(len(select), dtype=np.int64))
            add_expected(into, seen, paths.freq)

    def content(self, out: Sink) -> None:
        out.uint(self.states.bit_length() - 1)
        write_model(self.model, out)
        rows, cols = self.codes.shape
        cube = self.codes.reshape(rows, -1, len(self.model.positions))
        tables = Paths(self.model, cube.shape[:2], self.kernel, self.states, self.lanes)
        for part in row_chunks(rows, cols):
            write_chunk(cube[part], tables, part, out)

    @staticmethod
    def read(src: Reader, frame: Frame) -> np.ndarray:
        positions = int(np.prod(frame.kernel))
        channels = frame.cols // positions
        states = 1 << src.uint(8)
        if states not in trellis.STATES or channels % frame.lanes:
            raise src.fail(f"a trellis of {states} states over {channels} channels in {frame.lanes} lanes")
        model = read_model(src, (frame.rows, channels, positions), frame.kernel)
        tables = Paths(model, (frame.rows, channels), frame.kernel, states, frame.lanes)
        return by_chunks(frame, lambda part: read_chunk(src, tables, part, (channels, positions)))
