"""Densities as integer frequency tables: the generalized Gaussian family, frozen, and what a table costs.

A density of the family is named by three small integers: the shape (an index into `SHAPES`), the scale (the standard
deviation against the step, in eighths of an octave) and the phase (how far the mean lies from an integer, in eighths).
Its table is computed from the frozen survival function with integer arithmetic only, so every machine derives the
same one. Symbols are int8: -127 to 127, and `ESCAPE` for all that is rarer than about one in 2^13.
"""

from functools import lru_cache

import numpy as np

from waterfill.coding.density_tables import OCTAVE, SURVIVAL

PRECISION = 12
"""Frequencies of a table sum to 2**PRECISION exactly."""
ESCAPE = -128
"""The symbol of a value that follows in the escape stream."""
SCALES = 73
"""Scale index k is a standard deviation of 2**(k / 8 - 5) steps: from 1/32 to 16 steps."""
PHASES = 5
"""Phase h is a mean of h / 8 steps above the integer; negative ones are coded mirrored."""
SCALE_ZERO = 40
"""The scale index of a standard deviation of exactly one step."""

_TOTAL_BITS = 30
_GRID = 16 * np.arange(len(SURVIVAL[0]), dtype=np.int64) ** 2  # the abscissas in units of 2^-16


def _mass_above(shape: int, edges: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Mass above each edge (int64, sixteenths of a step) in units of 2^-30; linear between the frozen points."""
    survival = np.asarray(SURVIVAL[shape] + (0,), dtype=np.int64)
    sigma = np.asarray(OCTAVE, dtype=np.int64)[scales % 8] << (scales // 8)  # in units of 2^-21 steps
    x = (np.abs(edges) << 33) // sigma
    j = np.minimum(np.searchsorted(_GRID, x, side="right") - 1, len(_GRID) - 1)
    inside = j < len(_GRID) - 1
    width = np.append(np.diff(_GRID), 1)[j]
    drop = (survival[j] - survival[j + 1]) * np.where(inside, x - _GRID[j], 1) // width
    above = survival[j] - drop
    return np.where(edges >= 0, above, (1 << _TOTAL_BITS) - above)


def normalize(masses: np.ndarray, escape: bool = True) -> np.ndarray:
    """Frequencies [..., 256] (uint16, sum 2**12) for masses [..., 256] (int64, symbol & 255), by largest remainders.

    A symbol whose share rounds to zero gets none and must be escaped; with `escape`, `ESCAPE` gets at least one.
    """
    masses = masses.astype(np.int64)
    total = np.maximum(masses.sum(-1, keepdims=True), 1)
    scaled = masses << PRECISION
    freq = (2 * scaled + total) // (2 * total)
    freq[..., ESCAPE & 255] = np.maximum(freq[..., ESCAPE & 255], int(escape))
    remainder = scaled - freq * total
    excess = freq.sum(-1, keepdims=True) - (1 << PRECISION)
    while excess.any():
        sign = np.sign(excess)
        movable = (freq > (sign > 0)) & (sign != 0)
        order = np.argsort(np.where(movable, remainder * sign, np.iinfo(np.int64).max), axis=-1, kind="stable")
        chosen = np.zeros(freq.shape, dtype=bool)
        np.put_along_axis(chosen, order, np.arange(freq.shape[-1]) < np.abs(excess), axis=-1)
        moved = sign * (chosen & movable)
        freq -= moved
        remainder += moved * total
        excess -= moved.sum(-1, keepdims=True)
    return freq.astype(np.uint16)


@lru_cache(maxsize=64)
def family(shape: int, phases: int = PHASES) -> np.ndarray:
    """Tables of one density: frequencies [SCALES, phases, 256] (uint16, sum 2**12), index `symbol & 255`. Read only."""
    symbols = np.arange(-127, 128, dtype=np.int64)
    edges = np.append(16 * symbols - 8, 16 * 127 + 8) - 2 * np.arange(phases)[:, None]
    above = _mass_above(shape, edges, np.arange(SCALES)[:, None, None])
    masses = np.zeros((SCALES, phases, 256), dtype=np.int64)
    masses[..., symbols & 255] = above[..., :-1] - above[..., 1:]
    rare = masses < 1 << (_TOTAL_BITS - PRECISION - 1)
    masses[..., ESCAPE & 255] = np.where(rare, masses, 0).sum(-1) + (1 << _TOTAL_BITS) - masses.sum(-1)
    masses[rare & (np.arange(256) != (ESCAPE & 255))] = 0
    tables = normalize(masses)
    tables.flags.writeable = False
    return tables


def price_list(freq: np.ndarray) -> np.ndarray:
    """Bits of each symbol under tables [..., 256], float32; a symbol without frequency costs the escape and 8 bits."""
    freq = freq.astype(np.float32)
    bits = PRECISION - np.log2(np.maximum(freq, 1))
    escape = bits[..., ESCAPE & 255 : (ESCAPE & 255) + 1] + 8
    return np.where(freq > 0, bits, escape).astype(np.float32)
