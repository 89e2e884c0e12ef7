"""The density of floating-point magnitudes: the generalized Gaussian family on the scale of the exponent.

A symbol counts steps of 1 / 2^top octave from the octave of the entry's scale (see `floats`); its frequency is the
family's mass between the two magnitudes that bound it, from the frozen survival function in integers only. The scale is
a product of a row's, a channel's and a kernel position's factor, each only where it pays for its own bits. Where no
density of the family fits, a histogram takes its place.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import numpy as np

from waterfill.coding import density
from waterfill.coding.density_tables import OCTAVE, SHAPES, SURVIVAL
from waterfill.coding.lossless import word_format
from waterfill.coding.lossless.means import log2, mean_sizes, sums
from waterfill.coding.lossless.word_format import PHASES, Factors, WordFormat
from waterfill.coding.stream import Reader, Sink, Tally

ESCAPE_BITS = 16
"""An escaped symbol is followed, elsewhere, by its top bits."""
PRICE_UNIT = 1 << 20
"""Prices are whole numbers of this part of a bit: their sums are exact, so no choice depends on the order of adding."""

_UNIT = 28  # abscissas are integers in units of 2^-28 standard deviations
_GRID = (16 * np.arange(len(SURVIVAL[0]), dtype=np.int64) ** 2) << (_UNIT - 16)
_SYMBOLS = np.arange(-127, 128)
_HISTOGRAM = len(SHAPES)  # in the place of a shape: the table is written out
_REACH = 512  # symbols counted on either side, so that a scale can be moved without counting again
_MOVES = range(-24, 25)
_LARGEST = 1 << 13  # of the base, and half of it of a factor: sums stay inside 16 bits
_WORDS_SAMPLED = 1 << 18


@lru_cache(maxsize=64)
def family(shape: int, top: int) -> np.ndarray:
    """Frequencies [PHASES, 256] (uint16, each summing to 2**12), index `symbol & 255`. Read only."""
    tables = np.stack([_table(shape, phase, top) for phase in range(PHASES)])
    tables.flags.writeable = False
    return tables


def _table(shape: int, phase: int, top: int) -> np.ndarray:
    edges = np.arange(-127, 129)
    octave, fraction = np.minimum(edges >> top, 5), edges & ((1 << top) - 1)
    shift = _UNIT + 16 - top + octave
    steps = ((1 << top) + fraction).astype(np.int64) << np.maximum(shift, 0)
    above = _mass_above(shape, np.where(shift < 0, 0, steps // OCTAVE[phase]))
    masses = np.zeros(256, dtype=np.int64)
    masses[_SYMBOLS & 255] = np.maximum(above[:-1] - above[1:], 0)
    rare = masses << density.PRECISION < 1 << 28  # below half a count of a one-sided mass of 2^29
    masses[density.ESCAPE & 255] = (1 << 29) - masses[~rare].sum()
    masses[rare & (np.arange(256) != (density.ESCAPE & 255))] = 0
    return density.normalize(masses)


def _mass_above(shape: int, x: np.ndarray) -> np.ndarray:
    """One-sided mass above x (int64, 2^-28 standard deviations) in units of 2^-30; linear between the frozen points."""
    survival = np.asarray(SURVIVAL[shape], dtype=np.int64)
    x = np.minimum(x, _GRID[-1])
    j = np.minimum(np.searchsorted(_GRID, x, side="right") - 1, len(_GRID) - 2)
    above = survival[j] - (survival[j] - survival[j + 1]) * (x - _GRID[j]) // (_GRID[j + 1] - _GRID[j])
    return np.where(x == _GRID[-1], 0, above)


@dataclass(frozen=True, eq=False)
class Model:
    """The integers that the decoder needs before the first entry.

    shape: index into the family, or None for the histogram `freq`. freq: [PHASES, 256]. base: the scale where all
    factors are zero. rows [R], channels [C]: factors in quarters of an octave, or None. positions [P]: in eighths.
    """

    shape: int | None
    freq: np.ndarray
    base: int
    rows: np.ndarray | None = None
    channels: np.ndarray | None = None
    positions: np.ndarray | None = None

    def factors(self, rows: int, cols: int) -> Factors:
        """The two summands of the scale of a matrix [rows, cols]."""
        first = np.zeros(rows, np.int64) if self.rows is None else 2 * self.rows
        second = np.zeros(cols, np.int64)
        if self.channels is not None and self.positions is not None:
            second = (2 * self.channels[:, None] + self.positions).ravel()
        return (first + self.base).astype(np.int16), second.astype(np.int16)

    def write(self, out: Sink, signed: bool) -> None:
        shape = _HISTOGRAM if self.shape is None else self.shape
        out.uint(shape | (self.rows is not None) << 4 | (self.channels is not None) << 5 | signed << 6)
        out.uint(self.base)
        if self.rows is not None:
            out.ints(self.rows)
        if self.channels is not None and self.positions is not None:
            out.uint(len(self.positions))
            out.ints(self.positions)
            out.ints(self.channels)
        if self.shape is None:
            write_table(self.freq[0], out)

    @classmethod
    def read(cls, src: Reader, size: tuple[int, int], top: int) -> tuple[Self, bool]:
        """The model of a matrix of `size` [rows, cols], and whether its signs are stored. Raises CorruptFile."""
        flags, base = src.uint(127), src.uint(_LARGEST)
        shape = flags & 15
        rows = _small(src, size[0]) if flags & 16 else None
        channels = positions = None
        if flags & 32:
            count = src.uint(size[1])
            if count == 0 or size[1] % count:
                raise src.fail(f"{count} kernel positions in {size[1]} columns")
            positions, channels = _small(src, count), _small(src, size[1] // count)
        if shape > _HISTOGRAM:
            raise src.fail(f"density {shape} is not one of the family")
        freq = family(shape, top) if shape < _HISTOGRAM else np.tile(read_table(src), (PHASES, 1))
        model = cls(shape if shape < _HISTOGRAM else None, freq, base, rows, channels, positions)
        return model, bool(flags & 64)


def _small(src: Reader, count: int) -> np.ndarray:
    values = src.ints(count)
    if np.abs(values).max(initial=0) >= _LARGEST // 2:
        raise src.fail("a scale beyond every float")
    return values


def write_table(freq: np.ndarray, out: Sink) -> None:
    """One table [256]: the first symbol in use, how many more, and their frequencies; what is left is the escape's."""
    plain = freq[_SYMBOLS & 255]
    used = np.flatnonzero(plain) if plain.any() else np.zeros(1, np.int64)
    out.uint(int(used[0]))
    out.uint(int(used[-1] - used[0]))
    out.ints(plain[used[0] : used[-1] + 1])


def read_table(src: Reader) -> np.ndarray:
    """The table (uint16 [256], sum 2**12) that `write_table` wrote. Raises CorruptFile."""
    first = src.uint(254)
    values = src.ints(src.uint(254 - first) + 1)
    if values.min() < 0 or values.max() > 1 << density.PRECISION or values.sum() > 1 << density.PRECISION:
        raise src.fail("a frequency table that sums to more than 4096")
    freq = np.zeros(256, dtype=np.uint16)
    freq[_SYMBOLS[first : first + len(values)] & 255] = values
    freq[density.ESCAPE & 255] = (1 << density.PRECISION) - values.sum()
    return freq


def fit(words: np.ndarray, layout: WordFormat, positions: int) -> Model:
    """The model of words [rows, cols] with the shortest message; `positions` are the kernel positions of a channel."""
    stride = max(1, words.size // _WORDS_SAMPLED)
    candidates = []
    for rows, cols in _log_factors(words, layout):
        for model in _rounded(rows, cols, {1, positions} if len(cols) > 1 else {1}):
            first, second = model.factors(*words.shape)
            counts = _symbol_counts(_counts(words[::stride], layout, (first[::stride], second)), layout.top)
            candidates.append(_moved(model, counts, layout.top))
            if model.rows is None and model.channels is None:
                candidates.append(_histogram(model, counts))
    return min(candidates, key=lambda pair: pair[0] * stride + PRICE_UNIT * _side_bits(pair[1], layout))[1]


def _side_bits(model: Model, layout: WordFormat) -> int:
    tally = Tally()
    model.write(tally, layout.signed)
    return int(tally.bits)


def _log_factors(words: np.ndarray, layout: WordFormat) -> list[tuple[np.ndarray, np.ndarray]]:
    """Candidates of log2 row [rows] and column factors [cols], an axis that has none as one number."""
    rows, cols = mean_sizes(words, layout, None, None)
    overall = log2(sums(rows[None]) / len(rows))
    none = np.zeros(1)
    factors = [(overall, none)]
    if len(rows) > 1:
        factors.append((log2(rows), none))
    if len(cols) > 1 and len(rows) > 1:
        factors.append((overall, log2(cols) - overall))
        step = max(1, len(rows) // 1024)  # a thousand entries give a column's mean to a fifth of an eighth octave
        cols = mean_sizes(words[::step], layout, rows[::step], None)[1]
        rows = mean_sizes(words, layout, None, cols)[0]
        factors.append((log2(rows), log2(cols)))
    return factors


def _rounded(rows: np.ndarray, cols: np.ndarray, positions: set[int]) -> list[Model]:
    """Models (their density still to be found) with these log2 factors as integers, for each count of positions."""
    center = float(np.median(rows))
    row_factors = np.rint(4 * np.clip(rows - center, -256, 256)).astype(np.int64) if len(rows) > 1 else None
    made = []
    for count in sorted(positions):
        channels, places, middle = None, None, float(np.median(cols))
        if len(cols) > 1:
            grid = np.clip(cols - middle, -256, 256).reshape(-1, count)
            channel = np.median(grid, axis=1)
            channels = np.rint(4 * channel).astype(np.int64)
            places = np.rint(8 * np.mean(np.clip(grid - channel[:, None], -4, 4), axis=0)).astype(np.int64)
        base = int(np.clip(np.rint(8 * (center + middle + 127)), 0, _LARGEST))
        made.append(Model(None, np.zeros((0, 256), np.uint16), base, row_factors, channels, places))
    return made


def _counts(words: np.ndarray, layout: WordFormat, factors: Factors) -> np.ndarray:
    """How often each symbol -_REACH.._REACH (the ends: or beyond) occurs in each phase, [PHASES, 2 * _REACH + 1]."""
    scale, width = word_format.scales(factors), 2 * _REACH + 1
    relative = word_format.tops(words, layout).astype(np.int32) - (scale >> 3 << layout.top)
    index = (scale & (PHASES - 1)) * width + np.clip(relative, -_REACH, _REACH) + _REACH
    return np.bincount(index.ravel(), minlength=PHASES * width).reshape(PHASES, width)


@lru_cache(maxsize=4)
def _prices(top: int) -> np.ndarray:
    """Prices of symbols -127 to 127 and, last, of an escape, float64 [shapes, PHASES * 256]."""
    return np.stack([_price(family(shape, top)).ravel() for shape in range(len(SHAPES))])


def _price(freq: np.ndarray) -> np.ndarray:
    """Bits of symbols -127 to 127 and of an escape in units of 1 / PRICE_UNIT, [..., 256], under tables [..., 256]."""
    bits = density.PRECISION - np.log2(np.maximum(freq, 1).astype(np.float64))
    escape = bits[..., density.ESCAPE & 255, None] + ESCAPE_BITS
    plain = np.where(freq > 0, bits, escape)[..., _SYMBOLS & 255]
    return np.rint(PRICE_UNIT * np.concatenate([plain, escape], axis=-1))


@lru_cache(maxsize=4)
def _windows(top: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of _MOVES and each phase after it: the phase before, [moves, PHASES], and where the counts of symbols
    -127 to 127 are, [moves, PHASES, 255]."""
    moved, moves = np.arange(PHASES), np.array(_MOVES)[:, None]
    before = (moved - moves) % PHASES
    start = before * (2 * _REACH + 1) + _REACH - 127 + ((before + moves) // PHASES << top)
    return before, start[:, :, None] + np.arange(255)


def _symbol_counts(counts: np.ndarray, top: int) -> np.ndarray:
    """Counts of symbols -127 to 127 and of escapes when the scale makes each of _MOVES, [moves, PHASES * 256]."""
    before, places = _windows(top)
    counts = counts.astype(np.float64)  # whole numbers, whose sums are exact
    found = np.empty((len(_MOVES), PHASES, 256))
    np.take(counts, places, out=found[..., :255])
    found[..., 255] = counts.sum(1)[before] - found[..., :255].sum(2)
    return found.reshape(len(_MOVES), -1)


def _moved(model: Model, counts: np.ndarray, top: int) -> tuple[int, Model]:
    """The price of the entries, and the model, under the best density and base."""
    bits = counts @ _prices(top).T
    bits[np.array(_MOVES) < -model.base] = np.inf
    move, shape = (int(i) for i in np.unravel_index(int(np.argmin(bits)), bits.shape))
    base = model.base + _MOVES[move]
    return int(bits[move, shape]), replace(model, shape=shape, freq=family(shape, top), base=base)


def _histogram(model: Model, symbol_counts: np.ndarray) -> tuple[int, Model]:
    """The price of the entries, and the model, under a histogram in place of a density; the model has no factors."""
    base = model.base // PHASES * PHASES
    counts = symbol_counts[_MOVES.index(base - model.base)].reshape(PHASES, 256).sum(0)
    masses = np.zeros(256, dtype=np.int64)
    masses[_SYMBOLS & 255], masses[density.ESCAPE & 255] = counts[:255], counts[255]
    freq = density.normalize(masses)
    return int(counts @ _price(freq)), replace(model, freq=np.tile(freq, (PHASES, 1)), base=base)
