"""Codes in the blocks that the operators of ONNX Runtime multiply from and look up.

`MatMulNBits` and `GatherBlockQuantized` hold unsigned codes of 2, 4 or 8 bits, low bits first along a row, a scale and
a zero point for each block of 16, 32, ... columns; without zero points, 2^(bits - 1) stands for zero.
"""

from dataclasses import dataclass

import numpy as np

from waterfill.part import Codes

_WIDTHS = (2, 4, 8)
_SIZES = (256, 128, 64, 32, 16)  # columns of a block
_SCALE = 32  # bits of a scale


@dataclass(frozen=True)
class Blocks:
    """data: [rows, blocks, bytes]. scales: [rows, blocks] (float32). zeros: [rows, bytes of packed points] or None."""

    data: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None
    bits: int
    size: int


def why_not(codes: Codes) -> str | None:
    """Why no operator multiplies from codes; None where one does."""
    if not codes.codes.numel():
        return "an empty matrix"
    if _bits(codes) is None:
        least, most = (int(edge) for edge in codes.codes.aminmax())
        return f"codes from {least} to {most}, beyond 8 bits"
    if _block(codes) is None:
        return f"groups of {codes.group} columns; blocks have 16, 32, 64, 128 or 256"
    return None


def blocks_of(codes: Codes) -> Blocks:
    """Codes that `why_not` has nothing against. A group of several blocks gives its scale to each of them."""
    bits, size = _bits(codes) or 0, _block(codes) or 0
    rows, cols = codes.codes.shape
    count = -(-cols // size)
    half = 1 << bits - 1
    stored = np.full((rows, count * size), half, np.uint8)
    stored[:, :cols] = (codes.codes.numpy().astype(np.int16) + half).astype(np.uint8)
    group_of = np.arange(count) * size // max(codes.group, 1) if codes.scales.shape[1] > 1 else np.zeros(count, int)
    zeros = None
    if codes.zeros is not None:
        points = (codes.zeros.numpy().astype(np.int16) + half).astype(np.uint8)[:, group_of]
        zeros = _packed(np.pad(points, ((0, 0), (0, -count % (8 // bits)))), bits)
    data = _packed(stored, bits).reshape(rows, count, size * bits // 8)
    return Blocks(data, codes.scales.numpy()[:, group_of], zeros, bits, size)


def _packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Values [rows, n] below 2^bits, several to a byte, the first in the lowest bits."""
    each = 8 // bits
    fields = values.reshape(len(values), -1, each) << (bits * np.arange(each, dtype=np.uint8))
    packed: np.ndarray = np.bitwise_or.reduce(fields, axis=2).astype(np.uint8)
    return packed


def _bits(codes: Codes) -> int | None:
    """The fewest bits that hold all codes and zero points."""
    edges = [int(edge) for edge in codes.codes.aminmax()]
    edges += [] if codes.zeros is None else [int(edge) for edge in codes.zeros.aminmax()]
    return next((bits for bits in _WIDTHS if -(1 << bits - 1) <= min(edges) and max(edges) < 1 << bits - 1), None)


def _block(codes: Codes) -> int | None:
    """The columns of a block: for a scale by row as many as take the fewest bytes, else of as few blocks as can be."""
    cols, bits = codes.codes.shape[1], _bits(codes) or 0
    if codes.scales.shape[1] == 1:
        return min(_SIZES, key=lambda size: -(-cols // size) * (size * bits + _SCALE))
    return next((size for size in _SIZES if codes.group % size == 0), None)
