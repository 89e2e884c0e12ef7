"""Codes from bytes as docs/format.md tells it, in plain Python, with nothing of the library but its frozen numbers.

Slow and without any check: it exists to prove that the document is complete.
"""

import functools
import itertools
import math
import zlib

from waterfill.coding.density_tables import OCTAVE, SURVIVAL


def signed(number):
    return number // 2 if number % 2 == 0 else -(number + 1) // 2


class Source:
    """Numbers from a blob."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def raw(self, count):
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self):
        byte = self.raw(1)[0]
        return byte if byte < 128 else byte - 128 + 128 * self.varint()

    def rice(self, count):
        if count == 0:
            return []
        center, k = signed(self.varint()), self.varint()
        bits = Bits(self.data[self.at :])
        quotients = [next(n for n in itertools.count() if not bits.take(1)) for _ in range(count)]
        folded = {i: q << k | bits.take(k) for i, q in enumerate(quotients) if q < 24}
        folded |= {i: bits.take(32) for i, q in enumerate(quotients) if q >= 24}
        self.at += (bits.at + 7) // 8
        return [signed(folded[i]) + center for i in range(count)]


class Bits:
    """Numbers of so many bits, the highest bit first."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, width):
        value = 0
        for at in range(self.at, self.at + width):
            value = 2 * value + (self.data[at // 8] >> (7 - at % 8) & 1)
        self.at += width
        return value


class Stream:
    """Symbols from a rANS stream."""

    def __init__(self, data, lanes):
        self.states = [int.from_bytes(data[4 * i : 4 * i + 4], "little") for i in range(lanes)]
        words = data[4 * lanes :]
        self.words = [int.from_bytes(words[i : i + 2], "little") for i in range(0, len(words), 2)]

    def symbol(self, lane, table):
        slot, begin = self.states[lane] & 4095, 0
        for index in range(256):
            if slot < begin + table[index]:
                break
            begin += table[index]
        state = table[index] * (self.states[lane] >> 12) + slot - begin
        self.states[lane] = state << 16 | self.words.pop(0) if state < 1 << 16 else state
        return index

    def segment(self, tables):
        return [self.symbol(i % len(self.states), table) for i, table in enumerate(tables)]

    def end(self):
        assert self.words == []
        assert set(self.states) == {1 << 16}


@functools.cache
def density(shape, k, h):
    """The table [256] of a density."""
    sigma, points = OCTAVE[k % 8] * 2 ** (k // 8), [16 * j * j for j in range(257)]

    def above(a):
        x = abs(a) * 2**33 // sigma
        j = max(j for j in range(257) if points[j] <= x)
        mass = 0
        if j < 256:
            fall = SURVIVAL[shape][j] - SURVIVAL[shape][j + 1]
            mass = SURVIVAL[shape][j] - fall * (x - points[j]) // (points[j + 1] - points[j])
        return mass if a >= 0 else 2**30 - mass

    edges = [above(16 * s - 8 - 2 * h) for s in range(-127, 129)]
    masses = [0] * 256
    for s, low, high in zip(range(-127, 128), edges, edges[1:], strict=False):
        masses[s & 255] = low - high if low - high >= 2**17 else 0
    masses[128] = 2**30 - sum(masses)
    return frequencies(masses)


def frequencies(masses):
    total = sum(masses)
    found = [(8192 * m + total) // (2 * total) for m in masses]
    found[128] = max(found[128], 1)
    while excess := sum(found) - 4096:
        rest = [4096 * m - total * f for m, f in zip(masses, found, strict=True)]
        sign = 1 if excess > 0 else -1
        movable = sorted((sign * rest[i], i) for i in range(256) if found[i] > (1 if excess > 0 else 0))
        for _, i in movable[: abs(excess)]:
            found[i] -= sign
    return found


def crc(codes):
    small = all(-128 <= z <= 127 for z in codes)
    return zlib.crc32(b"".join(z.to_bytes(1 if small else 4, "little", signed=True) for z in codes))


def decode(data, rows, cols, kernel=()):
    """Lists of codes [rows][cols]."""
    return matrix(Source(data), rows, cols, kernel)


def matrix(src, rows, cols, kernel):
    positions = math.prod(kernel)
    sensible = kernel and min(kernel) >= 1 and 1 < positions <= 1024 and cols % positions == 0
    kernel = tuple(size for size in kernel if size > 1) if sensible else ()
    first = src.varint()
    read = (constant, modeled, histogram, packed, repeated, trellised)[first % 8]
    return read(src, rows, cols, (kernel, 2 ** (first // 8)))


def constant(src, rows, cols, _):
    code = signed(src.varint())
    return [[code] * cols for _ in range(rows)]


def histogram(src, rows, cols, context):
    lowest, span = signed(src.varint()), src.varint()
    table = src.rice(span + 1) + [0] * (255 - span)
    stream = Stream(src.raw(src.varint()), context[1])  # small matrices have one chunk
    codes = [lowest + s for s in stream.segment([table] * (rows * cols))]
    stream.end()
    assert crc(codes) == int.from_bytes(src.raw(4), "little")
    return [codes[r * cols : (r + 1) * cols] for r in range(rows)]


def packed(src, rows, cols, _):
    lowest, width = signed(src.varint()), src.varint()
    bits = Bits(src.raw((rows * cols * width + 7) // 8))
    return [[lowest + bits.take(width) for _ in range(cols)] for _ in range(rows)]


def repeated(src, rows, cols, context):
    distinct, steps = src.varint(), src.rice(rows)
    inner, met = matrix(src, distinct, cols, context[0]), 0
    found = []
    for step in steps:
        met += step == 0
        found.append(inner[(step or met) - 1])
    return found


def neighbors(kernel):
    """Earlier positions of every position."""
    at = list(itertools.product(*map(range, kernel)))
    nearest = [sorted(range(p), key=lambda q, p=p: (math.dist(at[p], at[q]), q))[:8] for p in range(len(at))]
    return [sorted(near) for near in nearest]


class Model:
    """The scale indices and means of a matrix of codes."""

    def __init__(self, src, rows, cols, kernel):
        self.near = neighbors(kernel) if kernel else [[]]
        self.channels = cols // len(self.near)
        count = sum(map(len, self.near))
        flags, self.base = src.varint(), src.varint()
        self.shape = flags & 15
        self.r = src.rice(rows) if flags & 16 else [0] * rows
        self.c = src.rice(self.channels) if flags & 32 else [0] * self.channels
        taps = iter(src.rice(count) if flags & 64 else [0] * count)
        self.taps = [[next(taps) for _ in before] for before in self.near]
        self.p = src.rice(len(self.near)) if kernel else [0]
        self.beyond = self.base + 2 * max(self.r) + 2 * max(self.c) + max(self.p) > 72

    def entries(self, planes):
        """Scale index and mean of the entries of the next position, row by row."""
        position, found = len(planes), []
        for i in range(len(self.r) * self.channels):
            near = zip(self.taps[position], self.near[position], strict=True)
            k = self.base + 2 * self.r[i // self.channels] + 2 * self.c[i % self.channels] + self.p[position]
            found.append((k, sum(t * planes[q][i] for t, q in near) // 2))
        return found

    def rows(self, src, planes):
        """The codes of planes as rows, after their checksum."""
        codes = [plane[i] for i in range(len(planes[0])) for plane in planes]
        assert crc(codes) == int.from_bytes(src.raw(4), "little")
        return [codes[i : i + len(codes) // len(self.r)] for i in range(0, len(codes), len(codes) // len(self.r))]


def modeled(src, rows, cols, context):
    model = Model(src, rows, cols, context[0])
    chunk = Chunk(src, model.beyond, context[1])
    planes = []
    for _ in model.near:
        entries = [(k, (m + 4) // 8, (m + 4) % 8 - 4) for k, m in model.entries(planes)]
        planes.append(chunk.plane(model.shape, entries))
    chunk.end()
    return model.rows(src, planes)


CHECKS = {4: "5 2", 8: "13 4", 16: "23 4", 32: "45 10", 64: "103 24", 128: "235 126", 256: "515 362"}


@functools.cache
def half_density(shape, k, t):
    """The table [256] of the halves of codes along a trellis."""
    w, h = (t + 4) // 8, (t + 4) % 8 - 4
    whole, found = density(shape, min(max(k, 0), 72), abs(h)), [0] * 256
    for s in range(-126, 127):
        e = s - w if h >= 0 else w - s
        found[s & 255] = whole[e & 255] if abs(e) <= 127 else 0
    found[found.index(max(found))] -= sum(found) == 4095
    missing = 4096 - sum(found)
    found[127], found[128] = missing // 2, missing - missing // 2
    return found


def trellised(src, rows, cols, context):
    kernel, lanes = context
    states = 2 ** src.varint()
    model = Model(src, rows, cols, kernel)
    escapes = src.rice(src.varint())
    stream = Stream(src.raw(src.varint()), lanes)
    a, b = (int(octal, 8) // 2 for octal in CHECKS[states].split())
    planes = []
    for _ in model.near:
        plane, state, entries = [0] * (rows * model.channels), [0] * lanes, model.entries(planes)
        for group, row, lane in itertools.product(range(model.channels // lanes), range(rows), range(lanes)):
            i, odd = row * model.channels + group * lanes + lane, state[lane] % 2
            k, u = entries[i][0], entries[i][1] // 2
            s = stream.symbol(lane, half_density(model.shape, k, u % 16 - 4 * odd))
            state[lane] = state[lane] // 2 ^ odd * a ^ s % 2 * b
            s = 2 * escapes.pop(0) + s % 2 if s in (127, 128) else s - s // 128 * 256
            plane[i] = 2 * (s + u // 16 * 2) + odd
        planes.append(plane)
    stream.end()
    assert escapes == []
    return model.rows(src, planes)


class Chunk:
    """The codes of kernel positions, one after the other; small matrices have one chunk."""

    def __init__(self, src, beyond, lanes):
        self.escapes = src.rice(src.varint())
        self.low = src.raw(src.varint()) if beyond else b""
        self.stream = Stream(src.raw(src.varint()), lanes)

    def plane(self, shape, entries):
        """Codes of entries, each a scale index and the whole and phase of a mean."""
        shifts = [max(0, (k - 65) // 8) for k, _, _ in entries]
        tables = [
            density(shape, k - 8 * n, 0) if n else density(shape, max(k, 0), abs(h))
            for n, (k, _, h) in zip(shifts, entries, strict=True)
        ]
        symbols = self.stream.segment(tables)
        low = self.low_bits([0 if s == 128 else n for s, n in zip(symbols, shifts, strict=True)])
        codes = []
        for s, n, bits, (_, w, h) in zip(symbols, shifts, low, entries, strict=True):
            if s == 128:
                e = self.escapes.pop(0)
            else:
                e = (s - 256 if s > 128 else s) * 2**n + bits - (2 ** (n - 1) if n else 0)
            codes.append(w - e if h < 0 else w + e)
        return codes

    def low_bits(self, shifts):
        """The low bits of every entry, as numbers."""
        low = [0] * len(shifts)
        for b in range(max(shifts)):
            here = [i for i, n in enumerate(shifts) if n > b]
            bits = Bits(self.low)
            for i in here:
                low[i] += bits.take(1) << b
            self.low = self.low[(len(here) + 7) // 8 :]
        return low

    def end(self):
        self.stream.end()
        assert self.low == b""
        assert self.escapes == []
