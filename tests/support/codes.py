"""Matrices of codes that the tests of the coding layer share: every way to write them, every oddity."""

import numpy as np

from waterfill.coding import trellis
from waterfill.coding.codes import matrix
from waterfill.coding.stream import Reader, Tally, Writer


def laplace(rows, cols, scale, seed=0):
    """Independent codes [rows, cols], Laplace around zero."""
    return np.rint(np.random.default_rng(seed).laplace(size=(rows, cols)) * scale).astype(np.int32)


def kernels(rows, channels, scale, kernel=(3, 3), seed=0):
    """Codes [rows, channels * positions] whose neighbors within a kernel are alike."""
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(rows, channels, 1)) + 0.4 * rng.normal(size=(rows, channels, int(np.prod(kernel))))
    return np.rint(smooth * scale).astype(np.int32).reshape(rows, -1)


def scaled(rows, cols, scale, seed=0):
    """Codes [rows, cols] whose scale is a product of a row's and a column's."""
    rng = np.random.default_rng(seed)
    factors = np.exp2(rng.normal(size=(rows, 1)) + rng.normal(size=cols))
    return np.rint(rng.normal(size=(rows, cols)) * factors * scale).astype(np.int32)


def outliers(rows, cols, farthest, seed=0):
    """Mostly small codes [rows, cols], a few of them as far as `farthest`."""
    codes = laplace(rows, cols, 1.0, seed)
    at = np.random.default_rng(seed).choice(codes.size, 5, replace=False)
    codes.flat[at] = farthest * np.array([1, -1, 1, -1, 1])
    return codes


def two_humps(rows, cols, seed=0):
    """Codes [rows, cols] that no density of the family fits."""
    rng = np.random.default_rng(seed)
    return rng.choice(np.array([-90, -89, 60, 61, 120]), size=(rows, cols)).astype(np.int32)


def repeated(rows, cols, distinct, seed=0):
    """Codes [rows, cols] of which only `distinct` rows differ."""
    return laplace(distinct, cols, 3.0, seed)[np.random.default_rng(seed).integers(0, distinct, rows)]


def trellised(rows, channels, scale, states, kernel=()):
    """Codes [rows, channels * positions] along a trellis in one chunk; neighbors within a kernel are alike."""
    code, lanes = trellis.trellis(states), trellis.lanes(rows, channels, int(np.prod(kernel)))
    wanted = np.random.default_rng(states).normal(size=(rows, channels, int(np.prod(kernel))))
    planes = trellis.along((0.4 * wanted + wanted[:, :, :1]) * scale, lanes)
    codes = np.empty(planes.shape, np.int32)
    for p, plane in enumerate(planes):
        state = np.zeros(lanes, np.intp)
        for i in range(0, len(plane), lanes):
            parity = code.parity[state].astype(np.int32)
            half = np.rint(plane[i : i + lanes] - parity / 2).astype(np.int32)
            codes[p, i : i + lanes] = 2 * half + parity
            state = code.transition[state, half & 1]
    return trellis.across(codes, rows, lanes).reshape(rows, -1)


def uniform(rows, cols, span, seed=0):
    """Codes [rows, cols], all equally likely."""
    return np.random.default_rng(seed).integers(-(span // 2), span - span // 2, (rows, cols)).astype(np.int32)


# One small matrix and its kernel for every mode and branch of the format.
EXAMPLES = {
    "constant": (np.full((5, 7), -3), ()),
    "no columns": (np.zeros((4, 0), dtype=np.int8), ()),
    "no rows": (np.zeros((0, 6), dtype=np.int8), ()),
    "one code": (np.array([[77]]), ()),
    "plain density": (laplace(12, 20, 1.5), ()),
    "row and channel scales": (scaled(40, 60, 2.0), ()),
    "kernels": (kernels(12, 10, 4.0), (3, 3)),
    "long kernels": (kernels(16, 8, 3.0, (5,)), (5,)),
    "cubes": (kernels(8, 8, 3.0, (3, 3, 3)), (3, 3, 3)),
    "raw low bits": (kernels(6, 4, 900.0), (3, 3)),
    "escapes": (outliers(12, 20, 5000), ()),
    "histogram": (two_humps(30, 40), ()),
    "packed": (uniform(8, 12, 1000), ()),
    "repeated": (repeated(60, 24, 5), ()),
    "repeated kernels": (np.tile(kernels(4, 4, 3.0), (6, 1)), (3, 3)),
}


# The same for codes along a trellis, with its number of states.
TRELLISES = {
    "trellis": (trellised(40, 24, 1.5, 8), (), 8),
    "trellis of kernels": (trellised(30, 16, 2.5, 4, (3, 3)), (3, 3), 4),
    "trellis with escapes": (trellised(9, 7, 300.0, 256), (), 256),
    "trellis of far kernels": (trellised(6, 4, 60.0, 64, (2, 2)), (2, 2), 64),
    "fine trellis": (trellised(130, 64, 0.2, 16), (), 16),
}


def written(codes, kernel=(), states=0):
    """The plan of codes and their bytes."""
    plan = matrix.plan(codes, kernel, states)
    out = Writer()
    out.put(plan)
    return plan, out.finish()


def tallied(plan):
    """Bits of a plan."""
    tally = Tally()
    tally.put(plan)
    return tally.bits


def read(data, shape, kernel=()):
    """Codes [rows, cols] from bytes that hold nothing else."""
    src = Reader(data)
    codes = matrix.read(src, *shape, kernel)
    src.end()
    return codes
