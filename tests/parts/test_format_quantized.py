"""docs/parts.md tells how quantized parts are written: readers made from its tables alone restore the same matrix."""

import numpy as np
import pytest
import torch

from waterfill import Importance, Quantize
from waterfill.coding.codes import matrix
from waterfill.coding.density_tables import OCTAVE
from waterfill.coding.stream import Reader
from waterfill.importance import smooth_gram

ROWS, COLS = 16, 36


def octaves(exponents: np.ndarray) -> np.ndarray:
    return np.array([OCTAVE[e % 8] * 2.0 ** (e // 8 - 16) for e in exponents], dtype=np.float32)


def quantized(src: Reader) -> np.ndarray:
    head = src.uint(2047)
    axes = head >> 3 & 15
    positions = int(np.prod([src.uint(64) for _ in range(axes)], initial=1))
    step = np.float32(src.float32())
    counts = (ROWS, COLS // positions, positions)
    row, channel, position = (octaves(src.ints(n)) if head >> i & 1 else np.ones(n) for i, n in enumerate(counts))
    codes = matrix.read(src, ROWS, COLS, (positions,) if axes else ())
    left = codes * (step * row.astype(np.float32))[:, None]
    return left * np.outer(channel, position).ravel().astype(np.float32)


def grouped(src: Reader) -> np.ndarray:
    group, has_zeros = src.uint(COLS), src.uint(1)
    groups = -(-COLS // group)
    scales = np.frombuffer(src.raw(2 * ROWS * groups), "<f2").reshape(ROWS, groups).astype(np.float32)
    zeros = src.ints(ROWS * groups).reshape(ROWS, groups) if has_zeros else np.zeros((ROWS, groups), int)
    own = np.arange(COLS) // group
    return (matrix.read(src, ROWS, COLS) - zeros[:, own]).astype(np.float32) * scales[:, own]


def spread(size: int) -> torch.Tensor:
    return torch.logspace(-1, 1, size)


@pytest.mark.parametrize(
    ("spec", "importance", "kind", "read"),
    [
        (Quantize(), Importance(), 3, quantized),
        (Quantize(), Importance(rows=spread(ROWS), diagonal=spread(COLS)), 3, quantized),
        (Quantize(), Importance(rows=spread(ROWS), gram=smooth_gram((9,), 0.75), kernel=(9,)), 3, quantized),
        (Quantize(states=8), Importance(), 3, quantized),
        (Quantize(states=256), Importance(rows=spread(ROWS), gram=smooth_gram((9,), 0.75), kernel=(9,)), 3, quantized),
        (Quantize(bits=4), Importance(), 4, grouped),
        (Quantize(bits=3, group=8), Importance(), 4, grouped),
        (Quantize(bits=3, group=10, symmetric=False), Importance(), 4, grouped),
    ],
)
def test_the_document_tells_how_to_read_a_quantized_part(spec, importance, kind, read):
    part = spec.fit(torch.randn(ROWS, COLS), importance, 1e-3)
    src = Reader(part.encode())
    assert src.uint(100) == kind
    assert read(src).astype(np.float32).tolist() == part.dense().tolist()
    src.end()
