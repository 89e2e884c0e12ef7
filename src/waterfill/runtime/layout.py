"""How small codes lie in memory: row by row, in blocks of whole registers.

A code of `bits` bits is stored plus 2^(bits - 1), so that it is not negative. A row is a sequence of blocks:

* 8 bits: 32 codes, a byte each;
* 4 bits: 64 codes in 32 bytes; code j is in byte j % 32, from bit 4 (j // 32) on;
* 2 bits: 128 codes in 32 bytes; code j is in byte j % 32, from bit 2 (j // 32) on;
* 3 bits: 128 codes in 48 bytes; 32 bytes with the two lower bits as for 2 bits, then 16 with the upper one: that of
  code j is bit j // 16 of byte j % 16.

Codes beyond the end of a row are zero bits.
"""

import numpy as np

from waterfill.coding import native

WIDTHS = (2, 3, 4, 8)
"""Bits that a code may have in memory."""
_COLS = {2: 128, 3: 128, 4: 64, 8: 32}
_BYTES = {2: 32, 3: 48, 4: 32, 8: 32}


def block_cols(bits: int) -> int:
    """Columns of a block of codes of so many bits."""
    return _COLS[bits]


def row_bytes(cols: int, bits: int) -> int:
    """Bytes of a row of codes."""
    return -(-cols // _COLS[bits]) * _BYTES[bits]


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [rows, cols], from -2^(bits - 1) to 2^(bits - 1) - 1, as bytes [rows, row bytes] (uint8)."""
    stored = (codes.astype(np.int16) + (1 << bits - 1)).astype(np.uint8)
    if native.core is not None:
        out = np.zeros((len(codes), row_bytes(codes.shape[1], bits)), np.uint8)
        native.core.pack_codes(np.ascontiguousarray(stored), bits, out)
        return out
    rows, cols = codes.shape
    wide = _COLS[bits]
    blocks = np.pad(stored, ((0, 0), (0, -cols % wide))).reshape(rows, -1, wide)
    if bits == 8:
        return blocks.reshape(rows, -1)
    fields = _fields(blocks & (3 if bits == 3 else 15), 32, 2 if bits == 3 else bits)
    if bits == 3:
        fields = np.concatenate([fields, _fields(blocks >> 2, 16, 1)], axis=2)
    return fields.reshape(rows, -1)


def unpacked(data: np.ndarray, cols: int, bits: int) -> np.ndarray:
    """The codes [rows, cols] (int16) of bytes that `packed` made."""
    rows = len(data)
    if native.core is not None:
        stored = np.empty((rows, cols), np.uint8)
        native.core.unpack_codes(np.ascontiguousarray(data), bits, stored)
    else:
        blocks = data.reshape(rows, -1, _BYTES[bits])
        if bits == 3:
            stored = _separate(blocks[..., :32], 2) | _separate(blocks[..., 32:], 1) << 2
        else:
            stored = _separate(blocks, bits)
        stored = stored.reshape(rows, -1)[:, :cols]
    return stored.astype(np.int16) - (1 << bits - 1)


def _fields(codes: np.ndarray, width: int, bits: int) -> np.ndarray:
    """Codes [rows, blocks, n] in `width` bytes for each block, the first so many in the lowest bits."""
    rows, blocks, _ = codes.shape
    apart = codes.reshape(rows, blocks, -1, width)
    shifts = bits * np.arange(apart.shape[2], dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(apart << shifts, axis=2)


def _separate(data: np.ndarray, bits: int) -> np.ndarray:
    """The reverse: the codes [rows, blocks, n] in bytes [rows, blocks, width]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    apart = data[:, :, None, :] >> shifts & ((1 << bits) - 1)
    return apart.reshape(*data.shape[:2], -1)
