"""How small codes lie in memory: row by row, in blocks of whole registers.

A code of `bits` bits is stored plus 2^(bits - 1), so that it is not negative. It is a lower field of 2, 4 or 8 bits and
an upper one of 0, 1 or 2:

| bits | codes in a block | bytes | lower, upper |
| --- | --- | --- | --- |
| 2 | 128 | 32 | 2, 0 |
| 3 | 128 | 48 | 2, 1 |
| 4 | 64 | 32 | 4, 0 |
| 5 | 128 | 80 | 4, 1 |
| 6 | 64 | 48 | 4, 2 |
| 8 | 32 | 32 | 8, 0 |

The lower fields come first, 32 bytes for as many times 32 codes as bytes have fields: of code j, with `line = j // 32`
and `each = 8 // lower`, in byte 32 (line // each) + j % 32 from bit lower (line % each) on. Then 16 bytes with the
upper fields: of code j in byte j % 16 from bit upper (j // 16) on. Codes beyond the end of a row are zero bits.
"""

import numpy as np

from waterfill.coding import native
from waterfill.coding.codes.widths import WIDTHS, block_bytes, block_cols, limits, row_bytes

__all__ = ["WIDTHS", "block_bytes", "block_cols", "clipped", "fields_of", "packed", "row_bytes", "unpacked"]

_LOWER = {2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 8: 8}


def fields_of(bits: int) -> tuple[int, int, int]:
    """Bits of the lower and of the upper field of a code, and the bytes of a block before the upper fields."""
    return _LOWER[bits], bits - _LOWER[bits], block_cols(bits) * _LOWER[bits] // 8


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [rows, cols] as bytes [rows, row bytes] (uint8); those beyond the width are clipped, see `clipped`."""
    if native.core is not None:
        out = np.empty((len(codes), row_bytes(codes.shape[1], bits)), np.uint8)
        native.core.pack_codes(_small(codes), bits, out)
        return out
    stored = (np.clip(codes.astype(np.int32), *limits(bits)) + (1 << bits - 1)).astype(np.uint8)
    rows, cols = codes.shape
    lower, upper, _ = fields_of(bits)
    blocks = np.pad(stored, ((0, 0), (0, -cols % block_cols(bits)))).reshape(rows, -1, block_cols(bits))
    made = [_fields(blocks & (1 << lower) - 1, 32, lower)]
    if upper:
        made.append(_fields(blocks >> lower, 16, upper))
    return np.concatenate(made, axis=2).reshape(rows, -1)


def clipped(codes: np.ndarray, bits: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is missing where `packed` clips `count` codes: starts [rows + 1], columns and values [count], all int32."""
    if native.core is not None and codes.dtype in (np.int8, np.int16):
        starts, where, values = (np.empty(n, np.int32) for n in (len(codes) + 1, count, count))
        native.core.clipped_codes(np.ascontiguousarray(codes), bits, starts, where, values)
        return starts, where, values
    whole = codes.astype(np.int32)
    missing = whole - np.clip(whole, *limits(bits))
    rows, columns = missing.nonzero()
    starts = np.concatenate([[0], np.bincount(rows, minlength=len(codes)).cumsum()])
    return starts.astype(np.int32), columns.astype(np.int32), missing[rows, columns]


def _small(codes: np.ndarray) -> np.ndarray:
    """The same codes, or wider ones clipped, as the compiled core takes them."""
    if codes.dtype not in (np.int8, np.int16):
        codes = np.clip(codes.astype(np.int32), *limits(8)).astype(np.int8)
    return np.ascontiguousarray(codes)


def unpacked(data: np.ndarray, cols: int, bits: int) -> np.ndarray:
    """The codes [rows, cols] (int16) of bytes that `packed` made."""
    rows = len(data)
    if native.core is not None:
        stored = np.empty((rows, cols), np.uint8)
        native.core.unpack_codes(np.ascontiguousarray(data), bits, stored)
    else:
        lower, upper, first = fields_of(bits)
        blocks = data.reshape(rows, -1, block_bytes(bits))
        codes = _separate(blocks[..., :first], 32, lower)
        if upper:
            codes = codes | _separate(blocks[..., first:], 16, upper) << lower
        stored = codes.reshape(rows, -1)[:, :cols]
    return stored.astype(np.int16) - (1 << bits - 1)


def _fields(codes: np.ndarray, width: int, bits: int) -> np.ndarray:
    """Fields [rows, blocks, n] in lines of `width` bytes, so many lines as a byte has fields in the same bytes."""
    rows, blocks, _ = codes.shape
    apart = codes.reshape(rows, blocks, -1, 8 // bits, width)
    shifts = bits * np.arange(8 // bits, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(apart << shifts, axis=3).reshape(rows, blocks, -1)


def _separate(data: np.ndarray, width: int, bits: int) -> np.ndarray:
    """The reverse: the fields [rows, blocks, n] of lines of bytes [rows, blocks, lines * width]."""
    lines = data.reshape(*data.shape[:2], -1, 1, width)
    shifts = bits * np.arange(8 // bits, dtype=np.uint8)[:, None]
    return (lines >> shifts & (1 << bits) - 1).reshape(*data.shape[:2], -1)
