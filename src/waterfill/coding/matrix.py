"""A matrix of codes as bytes: the shortest of a few ways to write it.

The first byte says how: all equal; the product-scale density model; a histogram; plain bits; or which rows repeat
earlier ones, and then the distinct rows in one of the other ways. `docs/format.md` has it to the bit.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from waterfill.coding import chunks, coder, density, integers, product
from waterfill.coding.product import Product
from waterfill.errors import BadInput

if TYPE_CHECKING:
    from waterfill.coding.stream import Reader, Sink

CONSTANT, PRODUCT, HISTOGRAM, PACKED, REPEATED = range(5)
_LARGE = 1 << 21  # beyond this many codes the histogram is tried only where the density model does poorly


@dataclass(frozen=True, eq=False)
class Plan:
    """How a matrix of codes will be written.

    codes: [rows, cols]. kernel: spatial extent behind a channel, () for none. mode: one of the five. model: of PRODUCT.
    freq: of HISTOGRAM, uint16 [1, 256]. inner and first: of REPEATED, the plan of the distinct rows [distinct, cols] and, for every
    row, which of them it is. lanes: of the rANS stream.
    """

    codes: np.ndarray
    kernel: tuple[int, ...]
    mode: int
    bits: float
    model: Product | None = None
    freq: np.ndarray | None = None
    inner: "Plan | None" = None
    which: np.ndarray | None = None
    lanes: int = 1

    @property
    def entries(self) -> int:
        """How many codes there are."""
        return self.codes.size


def narrow(codes: np.ndarray) -> np.ndarray:
    """The same codes in the smallest of int8, int16 and int32 that holds them."""
    low, high = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    for dtype in (np.int8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return np.ascontiguousarray(codes, dtype=dtype)
    raise BadInput(f"codes from {low} to {high}; they must lie within 24 bits")


def plan(codes: np.ndarray, kernel: tuple[int, ...] = ()) -> Plan:
    """The shortest way to write integer codes [rows, cols], columns = channels * prod(kernel)."""
    codes = narrow(np.asarray(codes))
    if codes.ndim != 2:
        raise BadInput(f"codes form a matrix [rows, cols]; found {codes.ndim} dimensions")
    if not codes.size or codes.min() == codes.max():
        return Plan(codes, (), CONSTANT, 24.0)
    if max(abs(int(codes.min())), abs(int(codes.max()))) >= chunks.LIMIT:
        raise BadInput(f"codes beyond {chunks.LIMIT}; choose a coarser step")
    repeated = _plan_repeated(codes, kernel)
    if repeated is not None:
        return repeated
    return min(_plans(codes, kernel), key=lambda p: p.bits)


def _plans(codes: np.ndarray, kernel: tuple[int, ...]) -> list[Plan]:
    found = [_plan_product(codes, kernel)]
    span = int(codes.max()) - int(codes.min())
    width = span.bit_length()
    found.append(Plan(codes, (), PACKED, 32.0 + 8 * -(-width * codes.size // 8)))
    if span < 255 and (codes.size < _LARGE or found[0].bits > 0.98 * found[1].bits):
        found.append(_plan_histogram(codes))
    return found


def _plan_product(codes: np.ndarray, kernel: tuple[int, ...]) -> Plan:
    kernel = spatial(codes.shape[1], kernel)
    positions = int(np.prod(kernel)) if kernel else 1
    cube = codes.reshape(codes.shape[0], -1, positions)
    model = product.fit(cube, kernel)
    bits = product.total_bits(cube, kernel, model)
    rows = chunks.rows_per_chunk(codes.shape[1])
    count = -(-codes.shape[0] // rows)
    lanes = coder.lanes_for(int(bits / 8 / count))
    overhead = count * (48 + 24 * lanes) + 16
    return Plan(codes, kernel, PRODUCT, bits + product.side_bits(model) + overhead, model=model, lanes=lanes)


def spatial(cols: int, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """The kernel if passes over its positions make sense for so many columns, else ()."""
    positions = int(np.prod(kernel)) if kernel else 1
    return () if positions in (0, 1) or positions > product.MOST_POSITIONS or cols % positions else kernel


def _plan_histogram(codes: np.ndarray) -> Plan:
    counts = np.bincount((codes.ravel().astype(np.int32) - int(codes.min())), minlength=2)
    masses = np.zeros(256, dtype=np.int64)
    masses[: len(counts)] = counts
    freq = density.normalize(np.maximum(masses, (masses > 0) * (1 + codes.size // 4096)))
    bits = float((masses * density.price_list(freq)).sum())
    table = integers.zigzag(freq[: len(counts)].astype(np.int64))
    lanes = coder.lanes_for(int(bits / 8))
    k = integers.best_parameter(table)
    return Plan(codes, (), HISTOGRAM, bits + integers.rice_bits(table, k) + 96 + 24 * lanes, freq=freq[None], lanes=lanes)


def _plan_repeated(codes: np.ndarray, kernel: tuple[int, ...]) -> Plan | None:
    """A plan for the distinct rows, where at least one row in twenty repeats another and that is shorter."""
    rows, cols = codes.shape
    if rows < 8 or cols < 8:
        return None
    sketch = codes[:, : min(cols, 64)]
    if len(np.unique(_as_records(sketch))) > 0.95 * rows:
        return None
    _, first, which = np.unique(_as_records(codes), return_index=True, return_inverse=True)
    if len(first) > 0.95 * rows:
        return None
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    inner = min(_plans(codes[first[order]], kernel), key=lambda p: p.bits)
    plain = min(_plans(codes, kernel), key=lambda p: p.bits)
    bits = inner.bits + 24 + _pointer_bits(rank[which.ravel()])
    if plain.bits <= bits:
        return plain
    return Plan(codes, kernel, REPEATED, bits, inner=inner, which=rank[which.ravel()])


def _as_records(codes: np.ndarray) -> np.ndarray:
    codes = np.ascontiguousarray(codes)
    return codes.view(np.dtype((np.void, codes.shape[1] * codes.itemsize))).ravel()


def _steps_back(which: np.ndarray) -> np.ndarray:
    """For every row: 0 if it is the next new one, else 1 + which of the rows known so far it repeats."""
    known = np.maximum.accumulate(np.concatenate([[-1], which]))
    return np.where(which > known[:-1], 0, which + 1)


def _pointer_bits(which: np.ndarray) -> float:
    folded = integers.zigzag(_steps_back(which))
    return float(integers.rice_bits(folded, integers.best_parameter(folded)))


def write(plan: Plan, out: "Sink") -> None:
    """Write the planned codes; the reader is told rows, columns and kernel by the part that holds them."""
    out.uint(plan.mode | (plan.lanes.bit_length() - 1) << 3)
    _WRITERS[plan.mode](plan, out)


def _write_constant(plan: Plan, out: "Sink") -> None:
    out.uint(int(integers.zigzag(plan.codes.ravel()[:1])[0]) if plan.codes.size else 0)


def _write_product(plan: Plan, out: "Sink") -> None:
    model = plan.model
    vectors = (model.rows, model.channels, model.taps)
    out.uint(model.shape | sum((v is not None) << (4 + i) for i, v in enumerate(vectors)))
    out.uint(model.base)
    for vector in (*vectors, model.positions if len(model.positions) > 1 else None):
        if vector is not None:
            out.ints(vector)
    rows, cols = plan.codes.shape
    channels = cols // len(model.positions)
    tables = chunks.Tables(model, rows, channels, plan.kernel)
    step = chunks.rows_per_chunk(cols)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        cube = plan.codes[part].reshape(-1, channels, len(model.positions))
        planes = [np.ascontiguousarray(cube[:, :, p], dtype=np.int32) for p in range(cube.shape[2])]
        chunks.write(planes, tables, part, plan.lanes, out)


def _write_histogram(plan: Plan, out: "Sink") -> None:
    low, high = int(plan.codes.min()), int(plan.codes.max())
    out.uint(int(integers.zigzag(np.array(low))))
    out.uint(high - low)
    out.ints(plan.freq[0, : high - low + 1])
    step = chunks.rows_per_chunk(plan.codes.shape[1])
    for start in range(0, len(plan.codes), step):
        codes = plan.codes[start : start + step]
        symbols = (codes.astype(np.int32) - low).astype(np.uint8).view(np.int8).ravel()
        stream = coder.encode([(symbols, None)], plan.freq, plan.lanes)
        out.uint(len(stream))
        out.raw(stream)
        out.raw(chunks.checksum(codes))


def _write_packed(plan: Plan, out: "Sink") -> None:
    low = int(plan.codes.min())
    width = (int(plan.codes.max()) - low).bit_length()
    out.uint(int(integers.zigzag(np.array(low))))
    out.uint(width)
    flat = plan.codes.ravel().astype(np.int64) - low
    places = np.arange(width - 1, -1, -1)
    for start in range(0, len(flat), chunks.CHUNK):
        piece = flat[start : start + chunks.CHUNK]
        out.raw(np.packbits((piece[:, None] >> places & 1).astype(np.uint8)).tobytes())


def _write_repeated(plan: Plan, out: "Sink") -> None:
    out.uint(len(plan.inner.codes))
    out.ints(_steps_back(plan.which))
    write(plan.inner, out)


_WRITERS = (_write_constant, _write_product, _write_histogram, _write_packed, _write_repeated)


def read(src: "Reader", rows: int, cols: int, kernel: tuple[int, ...]) -> np.ndarray:
    """Codes [rows, cols] that `write` wrote. Raises CorruptFile; the caller has claimed the entries."""
    first = src.uint(127)
    mode, lanes = first & 7, 1 << (first >> 3)
    if mode > REPEATED or lanes > coder.MAX_LANES:
        raise src.fail(f"codes written in mode {mode} with {lanes} lanes")
    if rows * cols == 0 and mode != CONSTANT:
        raise src.fail("codes of an empty matrix")
    return _READERS[mode](src, (rows, cols), kernel, lanes)


def _read_signed(src: "Reader", limit: int) -> int:
    return int(integers.unzigzag(np.array(src.uint(2 * limit))))


def _read_constant(src: "Reader", size: tuple[int, int], kernel: tuple[int, ...], lanes: int) -> np.ndarray:
    return narrow(np.full(size, _read_signed(src, 1 << 30), dtype=np.int32))


def _read_model(src: "Reader", size: tuple[int, int], positions: int, kernel: tuple[int, ...]) -> Product:
    flags = src.uint(127)
    shape = flags & 15
    if shape >= len(density.SHAPES) or (flags >> 6 & 1 and positions == 1):
        raise src.fail(f"a density model with flags {flags}")
    base = src.uint(255)
    taps = sum(len(near) for near in product.neighbors(kernel)) if positions > 1 else 0
    lengths = (size[0], size[1] // positions, taps)
    vectors = [src.ints(n) if flags >> (4 + i) & 1 else None for i, n in enumerate(lengths)]
    places = src.ints(positions) if positions > 1 else np.zeros(1, dtype=np.int64)
    if any(v is not None and len(v) and np.abs(v).max() > 255 for v in (*vectors, places)):
        raise src.fail("a factor or tap of the density model is out of range")
    return Product(shape, base, vectors[0], vectors[1], places, vectors[2])


def _read_product(src: "Reader", size: tuple[int, int], kernel: tuple[int, ...], lanes: int) -> np.ndarray:
    rows, cols = size
    kernel = spatial(cols, kernel)
    positions = int(np.prod(kernel)) if kernel else 1
    model = _read_model(src, size, positions, kernel)
    channels = cols // positions
    tables = chunks.Tables(model, rows, channels, kernel)
    step = chunks.rows_per_chunk(cols)
    codes = np.empty((rows, channels, positions), dtype=np.int8)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        piece = chunks.read(src, tables, part, (channels, positions), lanes)
        if piece.dtype != np.int8:
            piece = narrow(piece)
        if piece.itemsize > codes.itemsize:
            codes = codes.astype(piece.dtype)
        codes[part] = piece
    return codes.reshape(rows, cols)


def _read_histogram(src: "Reader", size: tuple[int, int], kernel: tuple[int, ...], lanes: int) -> np.ndarray:
    low, span = _read_signed(src, 1 << 30), src.uint(254)
    freq = np.zeros((1, 256), dtype=np.uint16)
    counts = src.ints(span + 1)
    if counts.min() < 0 or counts.max() > 4096:
        raise src.fail("a histogram with impossible frequencies")
    freq[0, : span + 1] = counts
    freq[0, density.ESCAPE & 255] += 4096 - int(freq.sum(dtype=np.int64)) if span < 128 else 0
    if freq.sum(dtype=np.int64) != 4096:
        raise src.fail("a histogram whose frequencies do not sum to 4096")
    rows, cols = size
    step = chunks.rows_per_chunk(cols)
    pieces = []
    for start in range(0, rows, step):
        count = min(step, rows - start)
        decoder = coder.Decoder(src.raw(src.uint(1 << 40)), freq, lanes)
        symbols = decoder.decode(count * cols)
        decoder.finish()
        codes = narrow(symbols.view(np.uint8).astype(np.int32).reshape(count, cols) + low)
        if src.raw(4) != chunks.checksum(codes):
            raise src.fail("the checksum of decoded codes is wrong")
        pieces.append(codes)
    return np.concatenate(pieces)


def _read_packed(src: "Reader", size: tuple[int, int], kernel: tuple[int, ...], lanes: int) -> np.ndarray:
    low, width = _read_signed(src, 1 << 30), src.uint(26)
    count = size[0] * size[1]
    codes = np.empty(count, dtype=np.int32)
    for start in range(0, count, chunks.CHUNK):
        piece = min(chunks.CHUNK, count - start)
        bits = np.unpackbits(np.frombuffer(src.raw((piece * width + 7) // 8), dtype=np.uint8), count=piece * width)
        places = np.left_shift(1, np.arange(width - 1, -1, -1), dtype=np.int32)
        codes[start : start + piece] = bits.reshape(piece, width) @ places + low
    return narrow(codes.reshape(size))


def _read_repeated(src: "Reader", size: tuple[int, int], kernel: tuple[int, ...], lanes: int) -> np.ndarray:
    distinct = src.uint(size[0])
    steps = src.ints(size[0])
    which = np.where(steps == 0, np.cumsum(steps == 0), steps) - 1
    if steps.min() < 0 or which.max() >= distinct or distinct == 0:
        raise src.fail("a row repeats a row that is not there")
    src.claim(distinct * size[1])
    return read(src, distinct, size[1], kernel)[which]


_READERS = (_read_constant, _read_product, _read_histogram, _read_packed, _read_repeated)
