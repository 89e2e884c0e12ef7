"""The trellis along which codes may run: a convolutional code gives the parity of each code.

The codes of a path are integers z = 2k + b: the state gives b, its parity; k is free and coded; the lowest bit of k,
the path bit, moves the state. So a coder spends bits on a lattice of step 2, and a quantizer that searches the paths
packs the points of the finer one as densely as in many dimensions (trellis coded quantization, Marcellin and Fischer,
IEEE Trans. Commun. 38, 1990). The codes are Ungerboeck's for one dimension (IEEE Trans. Inf. Theory 28, 1982, table I).

Whether codes run along a trellis depends only on their two lowest bits, not on the model they are coded under.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from waterfill.coding import native, rans
from waterfill.coding.chunking import row_chunks, rows_per_chunk

_CHECKS = {
    4: (0o5, 0o2),
    8: (0o13, 0o4),
    16: (0o23, 0o4),
    32: (0o45, 0o10),
    64: (0o103, 0o24),
    128: (0o235, 0o126),
    256: (0o515, 0o362),
}
STATES = tuple(_CHECKS)
"""The numbers of states that are supported."""


@dataclass(frozen=True, eq=False)
class Trellis:
    """A code: `transition[state, path bit]`, uint8 [states, 2], and `parity[state]`, uint8 [states]; it begins in 0."""

    states: int
    transition: np.ndarray
    parity: np.ndarray


@lru_cache(maxsize=len(STATES))
def trellis(states: int) -> Trellis:
    """The code of so many states, one of `STATES`. Raises ValueError for others."""
    if states not in _CHECKS:
        raise ValueError(f"a trellis has {', '.join(map(str, STATES))} states; asked for {states}")
    state = np.arange(states)
    parity = state & 1
    by_parity, by_path = (polynomial >> 1 for polynomial in _CHECKS[states])
    still = state >> 1 ^ parity * by_parity
    transition = np.stack([still, still ^ by_path], axis=1).astype(np.uint8)
    made = Trellis(states, transition, parity.astype(np.uint8))
    made.transition.flags.writeable = made.parity.flags.writeable = False
    return made


def lanes(rows: int, channels: int, positions: int) -> int:
    """The paths side by side in each pass over a chunk of a matrix [rows, channels, positions]: a power of two to 64.

    It divides the channels: channel c goes on in the state in which channel c - lanes of the same pass and chunk ended.
    """
    cols = channels * positions
    entries = min(rows, rows_per_chunk(cols)) * cols
    return min(rans.lanes_for(entries // 4), channels & -channels)


def check(codes: np.ndarray, states: int) -> None:
    """Raises ValueError if a code of [rows, channels, positions] does not have the parity of its state."""
    width = lanes(*codes.shape)
    for part in row_chunks(len(codes), codes.shape[1] * codes.shape[2]):
        for p, plane in enumerate(along(codes[part], width)):
            if (parities((plane >> 1 & 1).astype(np.int8), width, states) != plane & 1).any():
                raise ValueError(
                    f"codes of rows {part.start} on, kernel position {p}, leave the {states}-state trellis"
                )


def along(codes: np.ndarray, lanes: int) -> np.ndarray:
    """Codes [rows, channels, positions] as [positions, entries], in each pass in the order of the paths.

    That is by groups of `lanes` channels, in each row by row: symbol i of a pass is on path i mod lanes.
    """
    rows, channels, positions = codes.shape
    return codes.reshape(rows, channels // lanes, lanes, positions).transpose(3, 1, 0, 2).reshape(positions, -1)


def across(planes: np.ndarray, rows: int, lanes: int) -> np.ndarray:
    """The codes [rows, channels, positions] of which `along` makes these planes."""
    cube = planes.reshape(len(planes), -1, rows, lanes).transpose(2, 1, 3, 0)
    return np.ascontiguousarray(cube).reshape(rows, -1, len(planes))


def parities(path: np.ndarray, lanes: int, states: int) -> np.ndarray:
    """The parity (uint8 [n]) of the state before each entry; path: int8 [n], whose lowest bits are the path bits."""
    code = trellis(states)
    if native.core is not None:
        parity = np.empty(len(path), dtype=np.uint8)
        native.core.trellis_parities(np.ascontiguousarray(path), lanes, code.transition, parity)
        return parity
    steps = (path & 1).reshape(-1, lanes)
    before = np.empty(steps.shape, dtype=np.uint8)
    state = np.zeros(lanes, dtype=np.uint8)
    for i, step in enumerate(steps):
        before[i] = state
        state = code.transition[state, step]
    return code.parity[before].ravel()
