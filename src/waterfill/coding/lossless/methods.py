"""Words (the bits of numbers) exactly, in the fewest bytes that one of six methods finds.

* `Constant`: one word for all.
* `Planes`: any number type: the bytes of equal rank of all words make a plane, each raw, constant or under a histogram.
* `Short` and `Signed`: a few floats: their magnitudes as integers, Rice coded; there the overhead decides.
* `Scaled`: floats under the density of their magnitudes (see `magnitude`).
* `Masked`: where many words are zero: which ones, and the others by themselves.

A method is a frozen value that `plan` finds and that writes itself; `read` takes the words back. How many words there
are, and what they mean, is the caller's to know.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from waterfill.coding import density, rans
from waterfill.coding.lossless import magnitude, planes, word_format
from waterfill.coding.lossless.planes import STREAM, spans
from waterfill.coding.lossless.word_format import WordFormat
from waterfill.coding.stream import Reader, Sink, Tally

PIECE = 1 << 17
"""About how many entries are decoded at a time: few enough to stay in the cache between two loops."""
METHODS = 8
"""Method numbers are below this."""

_WORDS_TRIED_ALL_WAYS = 4096
_WORDS_SAMPLED = 1 << 17


@dataclass(frozen=True)
class Form:
    """The type of words: their layout if they are floats, else None, and their bytes; and a hint for the fit."""

    layout: WordFormat | None
    size: int
    """Bytes of a word."""
    positions: int = 1
    """Kernel positions of an input channel."""

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8 if self.layout is None else f"<u{self.size}")

    @property
    def fields(self) -> WordFormat:
        assert self.layout is not None, "only floats have fields"
        return self.layout


@dataclass(frozen=True, eq=False)
class Plan(ABC):
    """How words [rows, cols] are written. Those that are not floats come as bytes, [rows, cols * size]."""

    words: np.ndarray
    form: Form
    method: ClassVar[int]

    @abstractmethod
    def write(self, out: Sink) -> None:
        """Everything but method, form and shape."""

    @property
    def bits(self) -> float:
        tally = Tally()
        self.write(tally)
        return tally.bits


class Constant(Plan):
    """One word, little-endian, without its zero bytes at the end: their count, then the others."""

    method: ClassVar[int] = 0

    def write(self, out: Sink) -> None:
        layout, first = self.form.layout, self.words.reshape(-1)[: self.form.size]
        word = (first if layout is None else first[:1] >> layout.dropped).tobytes().rstrip(b"\0")
        out.uint(len(word))
        out.raw(word)

    @staticmethod
    def read(src: Reader, shape: tuple[int, int], form: Form) -> tuple[np.ndarray, int]:
        word = np.frombuffer(src.raw(src.uint(form.size)).ljust(form.size, b"\0"), form.dtype)
        if form.layout is None:
            return np.tile(word, shape), 1
        if word[0] >> (form.layout.bits - form.layout.dropped):
            raise src.fail("a number wider than its type")
        return np.full(shape, word[0] << form.layout.dropped, form.dtype), 1


class Planes(Plan):
    """See `planes`."""

    method: ClassVar[int] = 1

    def write(self, out: Sink) -> None:
        planes.write(self.words.view(np.uint8).reshape(len(self.words), -1, self.form.size), out)

    @staticmethod
    def read(src: Reader, shape: tuple[int, int], form: Form) -> tuple[np.ndarray, int]:
        return planes.read(src, (*shape, form.size)).reshape(shape[0], shape[1] * form.size).view(form.dtype), 1


class Short(Plan):
    """The magnitudes, Rice coded; no word has a sign."""

    method: ClassVar[int] = 2

    def write(self, out: Sink) -> None:
        out.ints(self.form.fields.magnitude(self.words))

    @staticmethod
    def read(src: Reader, shape: tuple[int, int], form: Form) -> tuple[np.ndarray, int]:
        return _magnitudes(src, shape, form), 1


class Signed(Plan):
    """The magnitudes, Rice coded, and the signs as bits."""

    method: ClassVar[int] = 5

    def write(self, out: Sink) -> None:
        out.ints(self.form.fields.magnitude(self.words))
        out.raw(np.packbits(self.words >> (self.form.fields.bits - 1)).tobytes())

    @staticmethod
    def read(src: Reader, shape: tuple[int, int], form: Form) -> tuple[np.ndarray, int]:
        words = _magnitudes(src, shape, form)
        signs = np.unpackbits(np.frombuffer(src.raw((words.size + 7) // 8), np.uint8), count=words.size)
        return words | signs.astype(form.dtype).reshape(shape) << (form.fields.bits - 1), 1


def _magnitudes(src: Reader, shape: tuple[int, int], form: Form) -> np.ndarray:
    """Words without signs [rows, cols] whose magnitudes were written as Rice codes. Raises CorruptFile."""
    layout, values = form.fields, src.ints(shape[0] * shape[1])
    if not 0 <= values.min(initial=0) <= values.max(initial=0) < 1 << (layout.exponent + layout.mantissa):
        raise src.fail("a number wider than its type")
    return (values << layout.dropped).astype(form.dtype).reshape(shape)


class Scaled(Plan):
    """The model; then chunks of rows: the stream of symbols, 2 bytes for each escaped word's top bits, the raw bits."""

    method: ClassVar[int] = 3

    @cached_property
    def _model(self) -> magnitude.Model:
        return magnitude.fit(self.words, self.form.fields, self.form.positions)

    @cached_property
    def _chunks(self) -> list[tuple[bytes, bytes, bytes]]:
        factors = self._model.factors(*self.words.shape)
        return [
            self._chunk(self.words[rows], (factors[0][rows], factors[1])) for rows in spans(self.words.shape, STREAM)
        ]

    def _chunk(self, words: np.ndarray, factors: word_format.Factors) -> tuple[bytes, bytes, bytes]:
        coded = (self._model.freq > 0).astype(np.uint8)
        segments, escapes, raws = [], b"", []
        for rows in spans(words.shape, PIECE):
            piece = (factors[0][rows], factors[1])
            symbols, raw = word_format.split(words[rows], self.form.fields, piece, coded)
            where = np.flatnonzero(symbols == density.ESCAPE)
            escapes += word_format.tops(words[rows].ravel()[where], self.form.fields).astype("<u2").tobytes()
            segments.append((symbols, word_format.select(piece)))
            raws.append(raw)
        return rans.encode(segments, self._model.freq, _lanes(words.size, self.form.fields)), escapes, b"".join(raws)

    def write(self, out: Sink) -> None:
        self._model.write(out, self.form.fields.signed)
        for stream, escapes, raw in self._chunks:
            out.uint(len(stream))
            out.raw(stream)
            out.uint(len(escapes) // 2)
            out.raw(escapes + raw)

    @staticmethod
    def read(src: Reader, shape: tuple[int, int], form: Form) -> tuple[np.ndarray, int]:
        model, signed = magnitude.Model.read(src, shape, form.fields.top)
        layout = replace(form.fields, signed=signed)
        words = np.empty(shape, form.dtype)
        first, second = model.factors(*shape)
        for rows in spans(shape, STREAM):
            source = _Source(src, words[rows].size, model.freq, layout)
            for piece in spans(words[rows].shape, PIECE):
                source.take((first[rows][piece], second), words[rows][piece])
            source.finish()
        return words, 1 if model.positions is None else len(model.positions)


class _Source:
    """A chunk while it is read, piece by piece."""

    def __init__(self, src: Reader, entries: int, freq: np.ndarray, layout: WordFormat) -> None:
        self._src, self._layout = src, layout
        self._decoder = rans.Decoder(src.raw(src.uint(1 << 40)), freq, _lanes(entries, layout))
        self._escapes = np.frombuffer(src.raw(2 * src.uint(entries)), "<u2")
        if self._escapes.max(initial=0) >= 1 << (layout.exponent + layout.top):
            raise src.fail("a number wider than its type")

    def take(self, factors: word_format.Factors, words: np.ndarray) -> None:
        """The next piece, into words [rows, cols]; its raw bits follow the raw bits of the piece before it."""
        symbols = self._decoder.decode(word_format.select(factors))
        word_format.merge(symbols, self._src.raw(self._layout.packed(words.size)), self._layout, factors, words)
        where = np.flatnonzero(symbols == density.ESCAPE)
        if len(where) > len(self._escapes):
            raise self._src.fail("more escapes than their values")
        word_format.patch(words, where, self._escapes[: len(where)], self._layout)
        self._escapes = self._escapes[len(where) :]

    def finish(self) -> None:
        self._decoder.finish()
        if len(self._escapes):
            raise self._src.fail("values of escapes are left over")


class Masked(Plan):
    """Which words are not zero, as a plane of zeros and ones; then the method and the plan of those, in one row."""

    method: ClassVar[int] = 4

    @cached_property
    def _inner(self) -> tuple[Plan, Plan]:
        used = self.words != 0
        return Planes(used.view(np.uint8), Form(None, 1)), plan(self.words[used][None], replace(self.form, positions=1))

    def write(self, out: Sink) -> None:
        mask, values = self._inner
        mask.write(out)
        out.uint(values.method)
        values.write(out)

    @staticmethod
    def read(src: Reader, shape: tuple[int, int], form: Form) -> tuple[np.ndarray, int]:
        used, _ = Planes.read(src, shape, Form(None, 1))
        if used.max(initial=0) > 1:
            raise src.fail("a mask of other numbers than 0 and 1")
        method = src.uint(METHODS)
        if method == Masked.method:
            raise src.fail("a mask inside a mask")
        words = np.zeros(shape, form.dtype)
        words[used.view(bool)] = read(src, method, (1, int(used.sum())), form)[0][0]
        return words, 1


_KINDS: dict[int, type[Constant | Planes | Short | Signed | Scaled | Masked]] = {
    kind.method: kind for kind in (Constant, Planes, Short, Scaled, Masked, Signed)
}


def plan(words: np.ndarray, form: Form) -> Plan:
    """The shortest way to write words [rows, cols] of this form; of a large matrix, a sample of its rows decides."""
    items = words.reshape(-1, form.size if form.layout is None else 1)
    if not (items != items[:1]).any():
        return Constant(words, form)
    if form.layout is None:
        return Planes(words, form)
    sample = words[:: max(1, words.size // _WORDS_SAMPLED)]
    kinds: list[type[Plan]] = [Planes, Scaled]
    if words.size <= _WORDS_TRIED_ALL_WAYS:
        kinds.append(Signed if form.layout.signed else Short)
    if np.count_nonzero(sample) < sample.size * 63 // 64:
        kinds.append(Masked)
    best = min((kind(sample, form) for kind in kinds), key=lambda method: method.bits)
    return best if sample.size == words.size else type(best)(words, form)


def read(src: Reader, method: int, shape: tuple[int, int], form: Form) -> tuple[np.ndarray, int]:
    """The words [rows, cols] (bytes [rows, cols * size] if not floats) that a plan wrote, and its kernel positions.

    Raises CorruptFile.
    """
    if method not in _KINDS or (form.layout is None and method > Planes.method):
        raise src.fail(f"method {method} is not one for these numbers")
    return _KINDS[method].read(src, shape, form)


def _lanes(entries: int, layout: WordFormat) -> int:
    """As many lanes as the chunk can afford, at about three bits a symbol beside the raw bits."""
    return rans.lanes_for(entries * (3 + layout.raw) // 8)
