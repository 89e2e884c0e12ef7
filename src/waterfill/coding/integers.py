"""Small integer vectors as bits: Rice codes for side information that is too short to deserve an entropy coder's state.

A vector is its center (zigzag varint), a Rice parameter (one byte) and one code word per entry of
`zigzag(value - center)`: the quotient by 2^k in unary (ones, then a zero), then k low bits, most significant first.
Source: Rice and Plaunt, 1971. A quotient of `LONG` or more is written as `LONG` ones and 32 plain bits instead.
"""

import numpy as np

from waterfill.errors import CorruptFile

LONG = 24
_MOST_LOW_BITS = 24


def zigzag(values: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, ... to 0, 1, 2, 3, ... (int64)."""
    values = np.asarray(values, dtype=np.int64)
    return (values << 1) ^ (values >> 63)


def unzigzag(values: np.ndarray) -> np.ndarray:
    """The inverse of `zigzag` (int64)."""
    values = np.asarray(values, dtype=np.int64)
    return (values >> 1) ^ -(values & 1)


def rice_bits(folded: np.ndarray, k: int) -> int:
    """Bits of the code words of non-negative integers under parameter k."""
    quotient = folded >> k
    return int(np.where(quotient < LONG, quotient + 1 + k, LONG + 32).sum())


def best_parameter(folded: np.ndarray) -> int:
    """The parameter with the fewest bits."""
    return min(range(_MOST_LOW_BITS), key=lambda k: rice_bits(folded, k))


def center_of(values: np.ndarray) -> int:
    """The integer that code words are written relative to: the lower median."""
    return int(np.partition(values, (len(values) - 1) // 2)[(len(values) - 1) // 2]) if len(values) else 0


def pack(folded: np.ndarray, k: int) -> bytes:
    """The code words as bytes, first bit in the most significant place, zero padded. Entries lie below 2^32."""
    quotient = folded >> k
    long = quotient >= LONG
    lengths = np.where(long, LONG + 32, quotient + 1 + k)
    ends = np.cumsum(lengths)
    bits = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    starts = ends - lengths
    ones = np.where(long, LONG, quotient)
    bits[np.repeat(starts, ones) + _ranges(ones)] = 1
    plain = np.where(long, 32, k)
    place = _ranges(plain)
    low = np.repeat(folded, plain) >> (np.repeat(plain, plain) - 1 - place) & 1
    bits[np.repeat(ends - plain, plain) + place] = low
    return np.packbits(bits).tobytes()


def unpack(data: np.ndarray, count: int, k: int) -> tuple[np.ndarray, int]:
    """Read `count` code words from bytes (uint8); return them (int64) and the number of bytes used."""
    if k >= _MOST_LOW_BITS:
        raise CorruptFile(f"Rice parameter {k} is out of range; the file is damaged")
    bits = np.unpackbits(data[: (count * (LONG + 32) + 7) // 8])
    zeros = np.append(np.flatnonzero(bits == 0), len(bits)).tolist()
    text = bits.tobytes()
    folded, at, nth = [], 0, 0
    for _ in range(count):
        while zeros[nth] < at:
            nth += 1
        ones = zeros[nth] - at
        start, width = (at + LONG, 32) if ones >= LONG else (zeros[nth] + 1, k)
        at = start + width
        if at > len(text):
            raise CorruptFile("an integer vector ends early; the file is truncated or damaged")
        low = _number(text, start, at)
        folded.append(low if ones >= LONG else ones << k | low)
        nth = min(nth, len(zeros) - 1)
    return np.array(folded, dtype=np.int64), (at + 7) // 8


def _number(bits: bytes, start: int, end: int) -> int:
    value = 0
    for bit in bits[start:end]:
        value = value << 1 | bit
    return value


def _ranges(lengths: np.ndarray) -> np.ndarray:
    """0 .. n-1 for every n, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)
