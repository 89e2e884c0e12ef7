"""Bytes under histograms: matrices of words of any type, as one plane for each byte of a word.

Chunks of rows follow one another: the planes' modes as the digits of a number of base 3, then the planes, those of the
lowest bytes first. A plane is raw, one byte for all, or a stream of `byte - shift` under a table; bytes too rare for
the table, and the one that falls on the escape symbol, escape.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from waterfill.coding import density, rans
from waterfill.coding.lossless.magnitude import read_table, write_table
from waterfill.coding.stream import Reader, Sink

STREAM = 1 << 20
"""About how many entries share a stream."""

_RAW, _CONSTANT, _CODED = range(3)
_SIDE_BITS = 120  # about what a coded plane spends besides its codes and 8 bits for each frequency


def spans(shape: Sequence[int], entries: int) -> Iterator[slice]:
    """Rows in groups of about so many entries, at least one row."""
    step = max(1, entries // max(1, shape[1]))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def write(octets: np.ndarray, out: Sink) -> None:
    """Write bytes [rows, cols, bytes of a word]."""
    for rows in spans(octets.shape, STREAM):
        planes = [octets[rows, :, b].ravel() for b in range(octets.shape[2])]
        counts = [np.bincount(plane, minlength=256) for plane in planes]
        modes = [_mode(count) for count in counts]
        out.uint(sum(mode * 3**b for b, mode in enumerate(modes)))
        for plane, count, mode in zip(planes, counts, modes, strict=True):
            _write_plane(plane, count, mode, out)


def read(src: Reader, shape: tuple[int, int, int]) -> np.ndarray:
    """The bytes [rows, cols, bytes of a word] that `write` wrote. Raises CorruptFile."""
    octets = np.empty(shape, np.uint8)
    for rows in spans(shape, STREAM):
        modes = src.uint(3 ** shape[2] - 1)
        for b in range(shape[2]):
            chunk = octets[rows, :, b]
            chunk[:] = _read_plane(src, modes // 3**b % 3, chunk.size).reshape(chunk.shape)
    return octets


def _mode(count: np.ndarray) -> int:
    """Constant if all bytes are equal; coded where by its entropy that saves more than it takes."""
    used = count[count > 0]
    if len(used) == 1:
        return _CONSTANT
    total = int(used.sum())
    saved = 8 * total + float((used * np.log2(used / total)).sum())
    return _CODED if saved > _SIDE_BITS + 8 * len(used) else _RAW


def _write_plane(plane: np.ndarray, count: np.ndarray, mode: int, out: Sink) -> None:
    if mode != _CODED:
        out.raw(plane[:1].tobytes() if mode == _CONSTANT else plane.tobytes())
        return
    shift = (int(np.argmin(count)) - density.ESCAPE) & 255  # the rarest byte falls on the escape
    freq = density.normalize(np.roll(count, -shift))
    symbols = plane - np.uint8(shift)
    escaped = (freq[symbols] == 0) | (symbols == density.ESCAPE & 255)
    symbols[escaped] = density.ESCAPE & 255
    out.raw(bytes([shift]))
    write_table(freq, out)
    stream = rans.encode([(symbols.view(np.int8), None)], freq[None], _lanes(plane.size))
    out.uint(len(stream))
    out.raw(stream)
    out.uint(int(escaped.sum()))
    out.raw(plane[escaped].tobytes())


def _read_plane(src: Reader, mode: int, entries: int) -> np.ndarray:
    if mode != _CODED:
        return np.frombuffer(src.raw(1 if mode == _CONSTANT else entries), np.uint8).repeat(entries if mode else 1)
    shift, freq = src.raw(1)[0], read_table(src)
    decoder = rans.Decoder(src.raw(src.uint(1 << 40)), freq[None], _lanes(entries))
    symbols = decoder.decode(entries).view(np.uint8)
    decoder.finish()
    escaped = symbols == density.ESCAPE & 255
    values = np.frombuffer(src.raw(src.uint(entries)), np.uint8)
    if len(values) != np.count_nonzero(escaped):
        raise src.fail("escapes and their values differ in number")
    plane = symbols + np.uint8(shift)
    plane[escaped] = values
    return plane


def _lanes(entries: int) -> int:
    return rans.lanes_for(entries // 2)
