"""Rows of a chunk, the limits of what is read, and the narrowest integers that hold some codes."""

import zlib
from collections.abc import Iterator

import numpy as np

from waterfill.coding import rans
from waterfill.errors import BadInput

LIMIT = 1 << 24
"""Codes lie strictly between -LIMIT and LIMIT."""


CHUNK = 1 << 20
"""About how many codes make a chunk."""


MOST_BYTES = 1 << 40
"""Of a stream: a bound for its length, which the bytes that are there bound more closely."""


def narrow(codes: np.ndarray) -> np.ndarray:
    """The same codes in the smallest of int8, int16 and int32 that holds them. Raises BadInput beyond `LIMIT`."""
    if codes.dtype.kind not in "iub":
        raise BadInput(f"codes are integers; found {codes.dtype}")
    low, high = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    if low <= -LIMIT or high >= LIMIT:
        raise BadInput(f"codes from {low} to {high}, but they must lie within 24 bits: choose a coarser step")
    bits = max(low, ~low, high, ~high).bit_length()
    return np.ascontiguousarray(codes, dtype=np.int8 if bits < 8 else np.int16 if bits < 16 else np.int32)


def rows_per_chunk(cols: int) -> int:
    """Rows of every chunk but the last, for a matrix of so many columns."""
    return max(1, CHUNK // cols)


def row_chunks(rows: int, cols: int) -> Iterator[slice]:
    """The rows of each chunk."""
    step = rows_per_chunk(cols)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def stream_overhead(shape: tuple[int, ...], bits: float) -> tuple[int, float]:
    """The lanes for a matrix [rows, cols] of so many bits in all, and the bits that its chunks take beyond them."""
    chunks = -(-shape[0] // rows_per_chunk(shape[1]))
    lanes = rans.lanes_for(int(bits / 8 / chunks))
    return lanes, chunk_overhead(shape, lanes)


def chunk_overhead(shape: tuple[int, ...], lanes: int) -> float:
    """About how many bits the chunks of a matrix [rows, cols] take beyond those of their codes."""
    return -(-shape[0] // rows_per_chunk(shape[1])) * (40 + 24 * lanes)


def checksum(codes: np.ndarray) -> bytes:
    """CRC-32 of codes as int8 where all of them fit, else as little-endian int32."""
    fits = codes.dtype == np.int8 or (codes.min() >= -128 and codes.max() <= 127)
    octets = np.ascontiguousarray(codes, dtype="i1" if fits else "<i4")
    return zlib.crc32(octets.data).to_bytes(4, "little")
