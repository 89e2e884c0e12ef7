"""Small integer vectors as bits: Rice codes for side information that is too short to deserve an entropy coder's state.

Every value is folded to `zigzag(value - center)` and split by a parameter k into a quotient (the value shifted right by
k) and its k low bits. The bits of a vector are, one kind after the other, so that no bit waits for the one before:

* the quotients in unary: as many ones, then a zero; `LONG` ones stand for any quotient of `LONG` or more;
* the low bits, k for every entry whose quotient is below `LONG`, the most significant first;
* for every other entry its whole folded value, 32 bits, the most significant first.

Source: Rice and Plaunt, IEEE Transactions on Communications, 1971.
"""

import numpy as np

from waterfill.errors import BadInput, CorruptFile

LONG = 24
PARAMETERS = 24
"""The parameter k lies below this."""
_WHOLE = 32
_VALUES_AT_A_TIME = 1 << 16


def zigzag(values: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, ... to 0, 1, 2, 3, ... (int64)."""
    values = np.asarray(values, dtype=np.int64)
    return (values << 1) ^ (values >> 63)


def unzigzag(values: np.ndarray) -> np.ndarray:
    """The inverse of `zigzag` (int64)."""
    values = np.asarray(values, dtype=np.int64)
    return (values >> 1) ^ -(values & 1)


def fold(value: int) -> int:
    """`zigzag` of one number."""
    return 2 * value if value >= 0 else -2 * value - 1


def unfold(value: int) -> int:
    """`unzigzag` of one number."""
    return value >> 1 if value % 2 == 0 else -(value >> 1) - 1


def rice_bits(folded: np.ndarray, k: "int | np.ndarray") -> np.ndarray:
    """Bits of non-negative integers [n] under parameter k, or under each of several [m]."""
    k = np.asarray(k)[..., None]
    quotient = folded >> k
    return np.where(quotient < LONG, quotient + 1 + k, LONG + 1 + _WHOLE).sum(-1)


def best_parameter(folded: np.ndarray, parameters: int = PARAMETERS) -> int:
    """The parameter, of the first so many, with the fewest bits."""
    return int(np.argmin(rice_bits(folded, np.arange(parameters))))


def center_of(values: np.ndarray) -> int:
    """The integer that values are folded around: the lower median."""
    middle = (len(values) - 1) // 2
    return int(np.partition(values, middle)[middle]) if len(values) else 0


def pack(folded: np.ndarray, k: int) -> bytes:
    """Folded values (int64) as bytes, first bit in the most significant place, padded with zeros.

    Raises BadInput for a value of 2^32 or more.
    """
    if len(folded) and int(folded.max()) >> _WHOLE:
        raise BadInput(f"integers that differ by up to {folded.max() >> 1}; side information must lie within 32 bits")
    quotient = np.minimum(folded >> k, LONG)
    ends = np.cumsum(quotient + 1)
    unary = np.ones(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    unary[ends - 1] = 0
    short = quotient < LONG
    return np.packbits(np.concatenate([unary, _digits(folded[short], k), _digits(folded[~short], _WHOLE)])).tobytes()


def unpack(data: np.ndarray, count: int, k: int) -> tuple[np.ndarray, int]:
    """Read `count` folded values (int64) from bytes (uint8); returns them and how many bytes they took.

    Raises CorruptFile. Memory is in proportion to the bytes that are there, not to `count`.
    """
    pieces, at = [np.zeros(0, dtype=np.int64)], 0
    for start in range(0, count, _VALUES_AT_A_TIME):
        piece = _unary(data, at, min(_VALUES_AT_A_TIME, count - start))
        pieces.append(piece)
        at += int(piece.sum()) + len(piece)
    folded = np.concatenate(pieces)
    long = folded == LONG
    whole = int(np.count_nonzero(long))
    folded[~long] = folded[~long] << k | _number(data, at, count - whole, k)
    at += (count - whole) * k
    folded[long] = _number(data, at, whole, _WHOLE)
    return folded, (at + whole * _WHOLE + 7) // 8


def _digits(values: np.ndarray, width: int) -> np.ndarray:
    """The binary digits of values, most significant first (uint8, flat)."""
    places = np.arange(width - 1, -1, -1)
    return (values[:, None] >> places & 1).astype(np.uint8).ravel()


def _unary(data: np.ndarray, at: int, count: int) -> np.ndarray:
    """`count` quotients that begin at bit `at`."""
    zeros = np.flatnonzero(_bits(data, at, count * (LONG + 1)) == 0)[:count]
    quotient = np.diff(zeros, prepend=-1) - 1
    if len(zeros) < count or quotient.max() > LONG:
        raise CorruptFile(f"{count} Rice coded integers end early or hold an impossible quotient")
    return quotient


def _number(data: np.ndarray, at: int, count: int, width: int) -> np.ndarray:
    """`count` numbers of `width` bits each (int64) that begin at bit `at`."""
    bits = _bits(data, at, count * width)
    if len(bits) < count * width:
        raise CorruptFile(f"the low bits of {count} Rice coded integers end early")
    value = np.zeros(count, dtype=np.int64)
    for digit in bits.reshape(count, width).T:
        value = value << 1 | digit
    return value


def _bits(data: np.ndarray, at: int, count: int) -> np.ndarray:
    """At most `count` bits of data from bit `at` on, one to a byte."""
    return np.unpackbits(data[at // 8 : (at + count + 7) // 8])[at % 8 : at % 8 + count]
