"""Codes in the blocks of llama.cpp: a float16 scale for 32 (or 256) weights, and their codes.

A value is d (q - 8) in Q4_0, d q + m in Q4_1, d (q - 16) in Q5_0, d q in Q8_0, d (q - 1) in TQ2_0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from waterfill.part import Codes

_COLS = 32
_LONG = 256


@dataclass(frozen=True)
class Blocks:
    """A matrix in blocks. type: their name. data: [rows, bytes]. values: what they are, [rows, cols] (float32)."""

    type: str
    data: np.ndarray
    values: np.ndarray


def why_not(codes: Codes) -> str | None:
    """Why no kind of block holds codes; None where one does."""
    cols = codes.codes.shape[1]
    if codes.columns is not None:
        return "scales of columns"
    if cols % _COLS or not codes.codes.numel():
        return f"{cols} columns, which are no multiple of {_COLS}"
    if codes.scales.shape[1] > 1 and codes.group % _COLS:
        return f"groups of {codes.group} columns, which are no multiple of {_COLS}"
    return None if _kind(codes) else f"codes from {_edges(codes)[0]} to {_edges(codes)[1]} that no block has"


def blocks_of(codes: Codes) -> Blocks:
    """The blocks of codes that `why_not` has nothing against, of the kind that takes the fewest bits."""
    kind = _kind(codes) or ""
    rows, cols = codes.codes.shape
    size = _LONG if kind == "TQ2_0" else _COLS
    count = cols // size
    group_of = np.arange(count) * size // max(codes.group, 1) if codes.scales.shape[1] > 1 else np.zeros(count, int)
    scales = codes.scales.numpy()[:, group_of].astype(np.float32)
    q = codes.codes.numpy().astype(np.int16).reshape(rows, count, size)
    offset = np.zeros((rows, count), np.float32)
    if codes.zeros is not None:
        offset = -scales * (codes.zeros.numpy()[:, group_of].astype(np.float32) + 8)
        q = q + 8
    with np.errstate(over="ignore"):
        d, m = scales.astype(np.float16), offset.astype(np.float16)
    if kind == "TQ2_0" and int(q.min()) < -1:  # a field holds -1 to 2, so the codes -2 to 1 change their signs
        d, q = -d, -q
    data = np.concatenate(_PACKERS[kind](q, _halves(d), _halves(m)), axis=2).reshape(rows, -1)
    values = q.astype(np.float32) * d.astype(np.float32)[..., None] + m.astype(np.float32)[..., None]
    return Blocks(kind, data, values.reshape(rows, cols))


def _kind(codes: Codes) -> str | None:
    """The kind of block of fewest bits that holds all codes."""
    least, most = _edges(codes)
    if codes.zeros is not None:
        zeros = [int(edge) for edge in codes.zeros.aminmax()]
        return "Q4_1" if min(least, zeros[0]) >= -8 and max(most, zeros[1]) <= 7 else None
    long = codes.codes.shape[1] % _LONG == 0 and (codes.scales.shape[1] == 1 or codes.group % _LONG == 0)
    if (long and least >= -2 and most <= 1) or (long and least >= -1 and most <= 2):
        return "TQ2_0"
    widths = (("Q4_0", 8), ("Q5_0", 16), ("Q8_0", 128))
    return next((name for name, half in widths if -half <= least and most < half), None)


def _edges(codes: Codes) -> tuple[int, int]:
    least, most = codes.codes.aminmax()
    return int(least), int(most)


def _halves(values: np.ndarray) -> np.ndarray:
    """Float16 numbers [rows, blocks] as bytes [rows, blocks, 2]."""
    return np.ascontiguousarray(values[..., None].astype("<f2")).view(np.uint8)


def _nibbles(q: np.ndarray) -> np.ndarray:
    """The first half of a block in the low nibbles, the second in the high ones."""
    return ((q[..., :16] & 15) | (q[..., 16:] & 15) << 4).astype(np.uint8)


def _q4_0(q: np.ndarray, d: np.ndarray, _: np.ndarray) -> list[np.ndarray]:
    return [d, _nibbles(q + 8)]


def _q4_1(q: np.ndarray, d: np.ndarray, m: np.ndarray) -> list[np.ndarray]:
    return [d, m, _nibbles(q)]


def _q5_0(q: np.ndarray, d: np.ndarray, _: np.ndarray) -> list[np.ndarray]:
    fifth = np.packbits(((q + 16) >> 4 & 1).astype(np.uint8), axis=2, bitorder="little")
    return [d, fifth, _nibbles(q + 16)]


def _q8_0(q: np.ndarray, d: np.ndarray, _: np.ndarray) -> list[np.ndarray]:
    return [d, q.astype(np.int8).view(np.uint8)]


def _tq2_0(q: np.ndarray, d: np.ndarray, _: np.ndarray) -> list[np.ndarray]:
    fields = (q + 1).astype(np.uint8).reshape(*q.shape[:2], 2, 4, 32)  # halves, fields of a byte, bytes
    shifted = fields << (2 * np.arange(4, dtype=np.uint8))[:, None]
    return [np.bitwise_or.reduce(shifted, axis=3).reshape(*q.shape[:2], 64).astype(np.uint8), d]


_PACKERS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], list[np.ndarray]]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q8_0": _q8_0,
    "TQ2_0": _tq2_0,
}
