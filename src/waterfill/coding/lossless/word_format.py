"""Floating-point words apart and together: symbols for the entropy coder, and the bits that no density can predict.

The magnitude of an IEEE 754 word, exponent above mantissa, is an integer that grows with the value. Its top bits (the
exponent and up to `TOP` mantissa bits) become a symbol, relative to the scale of the entry; the low mantissa bits and
the sign go raw, `raw` bits an entry, entry after entry, least significant bit first.

The scale of entry (o, i) is an integer, s = max(first_o + second_i, 0), in eighths of an octave on the exponent's own
biased scale. Its octave is what the symbol is relative to, its phase s mod 8 selects the symbol's table.
"""

from dataclasses import dataclass

import numpy as np

from waterfill.coding.density import ESCAPE

TOP = 2
"""Mantissa bits in a symbol. The third would save 0.006 bits per weight on ResNet-20, the second saves 0.016."""
PHASES = 8

Factors = tuple[np.ndarray, np.ndarray]
"""First [rows] and second [cols] summand of the scale (int16; their sums stay below 2^15)."""


@dataclass(frozen=True)
class WordFormat:
    """Where the fields of a word lie: sign (the highest bit), exponent, mantissa, and low bits that are all zero."""

    bits: int
    """Of a word: 16 or 32."""
    exponent: int
    mantissa: int
    """Mantissa bits that are kept; those below are zero in every word."""
    signed: bool = True
    """False if the sign is zero in every word."""

    @property
    def dropped(self) -> int:
        return self.bits - 1 - self.exponent - self.mantissa

    @property
    def top(self) -> int:
        """Mantissa bits in a symbol."""
        return min(TOP, self.mantissa)

    @property
    def low(self) -> int:
        """Mantissa bits that go raw."""
        return self.mantissa - self.top

    @property
    def raw(self) -> int:
        """Bits of an entry that go raw."""
        return self.low + self.signed

    def magnitude(self, words: np.ndarray) -> np.ndarray:
        """Exponent and kept mantissa as one integer, uint32."""
        return (words.astype(np.uint32) >> self.dropped) & np.uint32((1 << (self.exponent + self.mantissa)) - 1)

    def packed(self, entries: int) -> int:
        """Bytes of the raw bits of so many entries."""
        return (entries * self.raw + 7) // 8


def scales(factors: Factors) -> np.ndarray:
    """The scale of every entry, int32 [rows, cols]."""
    return np.maximum(factors[0][:, None] + factors[1], 0).astype(np.int32)


def select(factors: Factors) -> np.ndarray:
    """The table of every entry, uint16 [rows * cols]."""
    return (scales(factors) & (PHASES - 1)).astype(np.uint16).ravel()


def tops(words: np.ndarray, layout: WordFormat) -> np.ndarray:
    """The top bits of magnitudes, as symbols stand for them (uint32)."""
    return layout.magnitude(words) >> layout.low


def patch(words: np.ndarray, where: np.ndarray, values: np.ndarray, layout: WordFormat) -> None:
    """Put the top bits `values` into the words at the flat indices `where`."""
    at = layout.low + layout.dropped
    flat = words.reshape(-1)
    mask = ((1 << (layout.exponent + layout.top)) - 1) << at
    flat[where] = flat[where] & ~words.dtype.type(mask) | (values.astype(np.uint32) << at).astype(words.dtype)


def split(words: np.ndarray, layout: WordFormat, factors: Factors, coded: np.ndarray) -> tuple[np.ndarray, bytes]:
    """Symbols (int8 [n]) and raw bits of words [rows, cols]; `coded` [PHASES, 256]: which symbols the tables have.

    The others become `ESCAPE`: `tops` gives their values.
    """
    scale, magnitude = scales(factors), layout.magnitude(words)
    relative = (magnitude >> layout.low).astype(np.int32) - (scale >> 3 << layout.top)
    known = (np.abs(relative) <= 127) & (coded[scale & (PHASES - 1), relative & 255] != 0)
    symbols = np.where(known, relative, ESCAPE).astype(np.int8)
    sign = (words >> (layout.bits - 1)).astype(np.uint32)
    rest = magnitude & np.uint32((1 << layout.low) - 1) | (sign << layout.low if layout.signed else np.uint32(0))
    bits = np.unpackbits(rest.astype("<u4").view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
    return symbols.ravel(), np.packbits(bits[:, : layout.raw], bitorder="little").tobytes()


def merge(symbols: np.ndarray, raw: bytes, layout: WordFormat, factors: Factors, words: np.ndarray) -> None:
    """The inverse of `split`, into `words` [rows, cols]; what escaped is still to be put in by `patch`."""
    flat = np.unpackbits(np.frombuffer(raw, np.uint8), count=words.size * layout.raw, bitorder="little")
    bits = np.zeros((words.size, 32), dtype=np.uint8)
    bits[:, : layout.raw] = flat.reshape(words.size, layout.raw)
    rest = np.packbits(bits, axis=1, bitorder="little").view("<u4").reshape(words.shape)
    octave = scales(factors) >> 3 << layout.top
    top = (symbols.reshape(words.shape) + octave).astype(np.uint32)
    top &= np.uint32((1 << (layout.exponent + layout.top)) - 1)
    magnitude = top << layout.low | rest & np.uint32((1 << layout.low) - 1)
    sign = rest >> layout.low & np.uint32(layout.signed)
    words[:] = (magnitude << layout.dropped | sign << (layout.bits - 1)).astype(words.dtype)
