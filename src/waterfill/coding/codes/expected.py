"""How often each code is expected, from the table that every code is written under."""

from dataclasses import dataclass

import numpy as np

from waterfill.coding import density
from waterfill.coding.codes.plan import Frequencies
from waterfill.coding.model.density_model import half

_REACH = 126  # of symbols: beyond are those that stand for an escape


@dataclass(frozen=True, eq=False)
class Seen:
    """Of every code [n]: its table (select), and what makes a symbol s of it a code: center + factor * r, where r is s
    if raw is 0, else one of the 2^raw numbers around s << raw, all alike."""

    select: np.ndarray
    center: np.ndarray
    factor: np.ndarray
    raw: np.ndarray


def add_expected(into: Frequencies, seen: Seen, freq: np.ndarray) -> None:
    """Add the frequencies that the tables freq [tables, 256] expect; escaped codes are left out."""
    kinds, which = np.unique(np.stack([seen.center, seen.factor, seen.raw]), axis=1, return_inverse=True)
    tables, symbols = len(freq), np.arange(-_REACH, _REACH + 1)
    used = np.bincount(which.ravel() * tables + seen.select, minlength=kinds.shape[1] * tables)
    masses = used.reshape(-1, tables) @ (freq[:, symbols & 255] / (1 << density.PRECISION))
    for (center, factor, raw), mass in zip(kinds.T, masses, strict=True):
        around = np.arange(1 << raw) - half(raw)
        codes = center + factor * ((symbols << raw)[:, None] + around)
        into.add(codes.ravel(), np.repeat(mass / len(around), len(around)))
