"""How many bytes small codes take where layers run from them: rows of whole blocks (`runtime.layout` has the bits)."""

WIDTHS = (2, 3, 4, 5, 6, 8)
"""Bits that a code may have in memory."""
_COLS = {2: 128, 3: 128, 4: 64, 5: 128, 6: 64, 8: 32}


def block_cols(bits: int) -> int:
    """Columns of a block of codes of so many bits."""
    return _COLS[bits]


def block_bytes(bits: int) -> int:
    """Bytes of a block."""
    return _COLS[bits] * bits // 8


def row_bytes(cols: int, bits: int) -> int:
    """Bytes of a row of codes."""
    return -(-cols // _COLS[bits]) * block_bytes(bits)


def limits(bits: int) -> tuple[int, int]:
    """The least and the greatest code of a width."""
    return -(1 << bits - 1), (1 << bits - 1) - 1


def worth_trying(cols: int) -> list[int]:
    """The widths that take fewer bytes a row than every wider one, from the least to the greatest."""
    sizes = {bits: row_bytes(cols, bits) for bits in WIDTHS}
    return [bits for bits in WIDTHS if all(sizes[bits] < sizes[wider] for wider in WIDTHS if wider > bits)]
