"""What a matrix takes in the memory of a layer that runs from it, by the kind of its product."""

import numpy as np
import torch
from torch import Tensor

from waterfill.coding import native
from waterfill.coding.codes import widths
from waterfill.part.product import Chain, Codes, Columns, Entries, Levels, Product, Sum

_OUTLIER = 64 + 8  # bits of a correction
_FORM = 24  # bytes that say how codes lie
_FLOAT, _INDEX, _PLACE = 4, 8, 2  # bytes
_NARROW = 1 << 16  # columns that a place of two bytes tells apart


def width_of(codes: Codes) -> tuple[int, int]:
    """Bits of a code in memory, and how many codes are beyond them; 0 where no width will do.

    The fewest bytes in all, corrections counted; for groups, whose codes are not corrected, as many bits as hold all.
    """
    grouped = codes.scales.shape[1] > 1
    beyond = _beyond(codes.codes)
    fitting = [
        bits for bits in widths.WIDTHS if not (grouped and (beyond[bits] or codes.group % widths.block_cols(bits)))
    ]
    best = min(fitting, key=lambda bits: size_of(codes, bits, beyond[bits]), default=0)
    return best, beyond.get(best, 0)


def size_of(codes: Codes, bits: int, beyond: int) -> float:
    """Bits in memory of codes of a width, those beyond it corrected."""
    return 8.0 * len(codes.codes) * widths.row_bytes(codes.codes.shape[1], bits) + _OUTLIER * beyond


def held_bytes(rows: int, cols: int, bits: int, columns: bool) -> int:
    """Bytes of codes of a width, none beyond it, with a scale for each row and, if `columns`, for each column."""
    return rows * (widths.row_bytes(cols, bits) + _FLOAT) + (_FLOAT * cols if columns else 0) + _FORM


def bytes_of(product: Product) -> int:
    """Bytes that a packed layer holds of a matrix; those of its values as float32 where it cannot be packed."""
    match product:
        case Codes():
            own = _of_codes(product)
        case Levels():
            rows, cols = product.places.shape
            bits = next((bits for bits in widths.WIDTHS if 1 << bits >= len(product.values)), widths.WIDTHS[-1])
            own = rows * widths.row_bytes(cols, bits) + (_FLOAT << bits) + _FORM
        case Entries():
            place = _PLACE if product.values.shape[1] <= _NARROW else _FLOAT
            own = int((product.values != 0).sum()) * (place + _FLOAT) + _INDEX * (len(product.values) + 1)
        case Columns():
            return bytes_of(product.inner) + _INDEX * len(product.kept)
        case Chain():
            return bytes_of(product.left) + bytes_of(product.right)
        case Sum():
            return sum(map(bytes_of, product.terms))
        case _:
            return _FLOAT * product.matrix().numel()
    return own


def bytes_at(product: Product, shape: tuple[int, int]) -> float:
    """About how many bytes a product like this one has where its matrix has another shape [rows, cols]."""
    own, (rows, cols) = bytes_of(product), shape
    if isinstance(product, Codes) and product.codes.numel():
        (bits, beyond), scales = width_of(product), product.scales.shape[1]
        if scales == 1 and not beyond and own < _FLOAT * product.codes.numel():
            return held_bytes(rows, cols, bits, product.columns is not None)
    return own * rows * cols / max(1, product.matrix().numel())


def _of_codes(codes: Codes) -> int:
    """Bytes of codes and their scales."""
    rows, cols = codes.codes.shape
    bits, beyond = width_of(codes) if codes.codes.numel() else (0, 0)
    if not bits or size_of(codes, bits, beyond) >= 8 * _FLOAT * codes.codes.numel():
        return _FLOAT * rows * cols
    scales = sum(v.numel() for v in (codes.scales, codes.columns) if v is not None)
    points = 0 if codes.zeros is None else codes.zeros.numel()
    corrected = (_FLOAT * (rows + 1) + (_OUTLIER // 8) * beyond) if beyond else 0
    return rows * widths.row_bytes(cols, bits) + _FLOAT * scales + _PLACE * points + corrected + _FORM


def _beyond(codes: Tensor) -> dict[int, int]:
    """How many codes are beyond each width."""
    own = codes.numpy()
    if native.core is not None and codes.dtype in (torch.int8, torch.int16):
        found = native.core.codes_beyond(np.ascontiguousarray(own))
        return dict(zip(widths.WIDTHS, found, strict=True))
    least, most = (int(v) for v in torch.aminmax(codes))
    counts = {}
    for bits in widths.WIDTHS:
        low, high = widths.limits(bits)
        under, over = (own < low if least < low else own[:0]), (own > high if most > high else own[:0])
        counts[bits] = int(np.count_nonzero(under)) + int(np.count_nonzero(over))
    return counts
