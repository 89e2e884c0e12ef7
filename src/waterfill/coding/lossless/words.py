"""Words to bytes and back, many matrices in one call of the core; without it one after the other, by the reference.

`methods` is the reference, and says what is wrong with damaged bytes: the core only refuses them.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from waterfill.coding import native
from waterfill.coding.density_tables import OCTAVE, SURVIVAL
from waterfill.coding.lossless import methods
from waterfill.coding.lossless.methods import Form
from waterfill.coding.lossless.word_format import WordFormat
from waterfill.coding.stream import Reader, Writer


class Type(NamedTuple):
    """A number type as the bytes of a word, and bits of exponent and mantissa; no exponent: not a float of 2 or 4."""

    size: int
    exponent: int = 0
    mantissa: int = 0

    def form(self, mantissa: int, signed: bool, positions: int = 1) -> Form:
        """As the reference takes it, with so many mantissa bits kept."""
        if not self.exponent:
            return Form(None, self.size)
        return Form(WordFormat(8 * self.size, self.exponent, mantissa, signed), self.size, positions)


class Unpacked(NamedTuple):
    """Words to be written: their bytes, uint8 [rows, cols * size], and the kernel positions of an input channel."""

    octets: np.ndarray
    type: Type
    positions: int = 1


class Packed(NamedTuple):
    """Written words: mantissa bits that some word has, method, bytes, and entries that reading claims."""

    mantissa: int
    method: int
    data: bytes
    entries: int


class Unread(NamedTuple):
    """Words to be read: where from, by which method, with so many mantissa bits as the type says, and where to."""

    src: Reader
    method: int
    type: Type
    octets: np.ndarray
    """uint8 [rows, cols * size]; every byte is overwritten."""


def pack(matrices: Sequence[Unpacked], threads: int = 1) -> list[Packed]:
    """Write each in the fewest bytes that a method finds, on at most so many threads."""
    if native.core is None or not all(one.octets.size for one in matrices):
        return [_packed(one) for one in matrices]
    tasks = [(octets, *kind, positions) for octets, kind, positions in matrices]
    return [Packed(*found) for found in native.core.pack_words(_families(), tasks, threads)]


def unpack(matrices: Sequence[Unread], threads: int = 1) -> list[int]:
    """Read each into its place, on at most so many threads; returns their kernel positions. Raises CorruptFile."""
    if native.core is None or not all(one.octets.size for one in matrices):
        return [_unpacked(one) for one in matrices]
    tasks = [(*src.ahead(), method, *kind, octets) for src, method, kind, octets in matrices]
    positions = []
    for one, found in zip(matrices, native.core.unpack_words(_families(), tasks, threads), strict=True):
        if found is None:
            positions.append(_unpacked(one))
        else:
            one.src.skip(found[0], found[1])
            positions.append(found[2])
    return positions


def fields_in_use(octets: np.ndarray, kind: Type) -> tuple[int, bool]:
    """Mantissa bits and whether signs are stored: trailing bits and a sign that no word has cost nothing."""
    if not kind.exponent:
        return 0, True
    used = int(np.bitwise_or.reduce(octets.view(f"<u{kind.size}"), axis=None)) if octets.size else 0
    zeros = min(kind.mantissa, (used & -used).bit_length() - 1) if used else kind.mantissa
    return kind.mantissa - zeros, bool(used >> (kind.exponent + kind.mantissa))


def _packed(one: Unpacked) -> Packed:
    """`pack` of one matrix, by the reference."""
    kind = one.type
    words = one.octets.view(f"<u{kind.size}") if kind.exponent else one.octets
    form = kind.form(*fields_in_use(one.octets, kind), one.positions)
    plan, out = methods.plan(words, form), Writer()
    plan.write(out)
    return Packed(form.layout.mantissa if form.layout else 0, plan.method, out.data, out.entries)


def _unpacked(one: Unread) -> int:
    """`unpack` of one matrix, by the reference."""
    shape = len(one.octets), one.octets.shape[1] // one.type.size
    words, positions = methods.read(one.src, one.method, shape, one.type.form(one.type.mantissa, True))
    one.octets[:] = words.view(np.uint8).reshape(one.octets.shape)
    return positions


@cache
def _families() -> Any:
    """What the core derives from the frozen survival functions, kept there."""
    assert native.core is not None
    return native.core.Families(SURVIVAL, OCTAVE)
