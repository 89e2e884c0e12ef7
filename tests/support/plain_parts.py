"""Matrices from blobs as docs/format.md and docs/parts.md tell it, in plain Python: the kinds that compute something.

Slow and without any check, like `plain_decoder`, which reads the codes.
"""

import math
import struct

from tests.support.plain_decoder import Source, matrix

from waterfill.coding.density_tables import OCTAVE


def float32(value):
    """Rounded once: of a product or a sum of two float32, which float64 holds whole or nearly so, that is exact."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def restore(blob, count, rows, cols):
    """The matrices of a blob, lists of floats [rows][cols]."""
    src = Source(blob)
    return [part(src, rows, cols) for _ in range(count)]


def part(src, rows, cols):
    return KINDS[src.varint()](src, rows, cols)


def total(src, rows, cols):
    first, *others = [part(src, rows, cols) for _ in range(src.varint())]
    for other in others:
        first = [[float32(a + b) for a, b in zip(*pair, strict=True)] for pair in zip(first, other, strict=True)]
    return first


def product(src, rows, cols):
    rank = src.varint()
    left, right = (part(src, rows, rank), part(src, rank, cols)) if rank else ([[]] * rows, [])
    return [[chain(row, [other[c] for other in right]) for c in range(cols)] for row in left]


def chain(u, v):
    s = 0.0
    for a, b in zip(u, v, strict=True):
        s = float32(s + float32(a * b))
    return s


def quantized(src, rows, cols):
    head = src.varint()
    kernel = [src.varint() for _ in range(head >> 3 & 15)]
    positions = math.prod(kernel)
    step = struct.unpack("<f", src.raw(4))[0]
    sizes = (rows, cols // positions, positions)
    exponents = [src.rice(size) if head >> i & 1 else None for i, size in enumerate(sizes)]
    row, channel, place = (
        [1.0] * size if es is None else [OCTAVE[e % 8] * 2.0 ** (e // 8 - 16) for e in es]
        for es, size in zip(exponents, sizes, strict=True)
    )
    columns = [float32(c * p) for c in channel for p in place]
    lines = [float32(step * r) for r in row]
    codes = matrix(src, rows, cols, kernel)
    return [
        [float32(float32(z * s) * c) for z, c in zip(line, columns, strict=True)]
        for line, s in zip(codes, lines, strict=True)
    ]


def codebook(src, rows, cols):
    head = src.varint()
    levels, symmetric, halved = head >> 2, head >> 1 & 1, head & 1
    stored = [src.raw(2 if halved else 4) for _ in range(levels // 2 if symmetric else levels)]
    book = [struct.unpack("<f", b"\0\0" + raw if halved else raw)[0] for raw in stored]
    if symmetric:
        book = [-level for level in reversed(book)] + [0.0] * (levels % 2) + book
    if levels == 1:
        return [book * cols for _ in range(rows)]
    kernel = [src.varint() for _ in range(src.varint())]
    zero = min(range(levels), key=lambda i: abs(book[i]))
    return [[book[z + zero] for z in line] for line in matrix(src, rows, cols, kernel)]


KINDS = {1: total, 3: quantized, 5: codebook, 7: product}
