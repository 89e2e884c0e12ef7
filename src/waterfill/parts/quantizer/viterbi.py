"""Codes along a trellis: of all the paths through a column's rows the one of least distortion + price * bits.

Trellis coded quantization with the entropy coder's prices (Fischer and Wang, IEEE Trans. Inf. Theory 38, 1992): an
entry's codes fall into four cosets, z mod 4; the state gives the lowest bit of z and the path the next one. So each
step of a path costs what the best code of one coset costs, and Viterbi's algorithm finds the cheapest path. The
compiled form is native/quantizer/feedback.cpp.
"""

import numpy as np

from waterfill.coding import density
from waterfill.coding.model.fitting import center
from waterfill.coding.model.path_means import half_mean
from waterfill.coding.trellis import trellis

ESCAPED = np.float32(10)  # bits, about, of the value of an escaped code, beside `prices`
SETTLE = 64
FAR = np.float32(1e30)
FARTHEST = np.float32(1 << 25)


def cosets(
    x: np.ndarray, weight: np.ndarray, scale: np.ndarray, mean: np.ndarray, prices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The least cost (bits, float32) and the code (int32) by coset, both [4, n], of targets x [n] in steps.

    weight: bits per squared step, scale: scale indices, mean: of z in eighths, each [n]. prices: bits
    [scales, phases, 256].
    """
    index = np.clip(scale, 0, len(prices) - 1)
    x = np.clip(x, -FARTHEST, FARTHEST)
    cost, best = np.empty((4, len(x)), np.float32), np.empty((4, len(x)), np.int32)
    for coset in range(4):
        whole, phase = center(half_mean(mean) - 4 * (coset & 1))
        low = 4 * np.floor((x - np.float32(coset)) * np.float32(0.25)).astype(np.int32) + coset
        totals = []
        for code in (low, low + 4):
            residual = np.where(phase < 0, whole - (code >> 1), (code >> 1) - whole)
            symbol = np.where(np.abs(residual) > 127, density.ESCAPE & 255, residual & 255)
            gap = x - code.astype(np.float32)
            totals.append(weight * gap * gap + prices[index, np.abs(phase), symbol])
        cost[coset] = np.minimum(*totals)
        best[coset] = np.where(totals[1] < totals[0], low + 4, low)
    return cost, best


def steps(states: int) -> tuple[np.ndarray, np.ndarray]:
    """The state before each state on path bit u, and the coset of that step, both [states, 2] (int64)."""
    code = trellis(states)
    before = np.empty((states, 2), np.int64)
    for bit in (0, 1):
        before[code.transition[:, bit], bit] = np.arange(states)
    return before, code.parity[before] + 2 * np.arange(2)


def cheapest_path(cost: np.ndarray, best: np.ndarray, states: int, begin: int) -> tuple[np.ndarray, int]:
    """The codes (int32 [n]) of least total cost of all paths from state `begin`, and the state after them."""
    before, coset = steps(states)
    path = np.full(states, FAR)
    path[begin] = 0
    decisions = np.empty((cost.shape[1], states), np.uint8)
    for row, now in enumerate(cost.T):
        stay, move = (path[before] + now[coset]).T
        decisions[row] = move < stay
        path = np.minimum(stay, move)
        if row % SETTLE == SETTLE - 1:
            path -= path[0]
    end = state = int(np.argmin(path))
    codes = np.empty(cost.shape[1], np.int32)
    for row in reversed(range(len(codes))):
        bit = decisions[row, state]
        codes[row] = best[coset[state, bit], row]
        state = before[state, bit]
    return codes, end
