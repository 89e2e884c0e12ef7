"""The rate-distortion function of a Laplace source for squared errors, from below.

At low rates it is taken from the dual of the Blahut-Arimoto problem (Blahut 1972): for every slope and every density of
reproductions a straight line lies below R(D), and iterations bring it close. From 1.5 bits on Shannon's lower bound,
h(X) - 1/2 log2(2 pi e D), is within 0.001 bits of what these iterations reach from above.
"""

import functools
import math

import numpy as np

FARTHEST, STEP = 12.0, 0.03  # standard deviations
SLOPES = np.geomspace(0.5, 5.0, 26)
ITERATIONS = 3000


def shannon_bound(distortion: float) -> float:
    """Shannon's lower bound at variance 1, bits."""
    entropy = math.log2(2 * math.e * math.sqrt(0.5))
    return max(0.0, entropy - 0.5 * math.log2(2 * math.pi * math.e * distortion))


def laplace_rate(distortion: float, variance: float = 1.0) -> float:
    """A lower bound, within about 0.005 bits, on R(D) of a Laplace source of this variance at mean squared error D."""
    share = distortion / variance
    if share >= 1:
        return 0.0
    lines = (intercept - slope * share for slope, intercept in tangents())
    return max(0.0, shannon_bound(share), max(lines) / math.log(2))


@functools.cache
def tangents() -> tuple[tuple[float, float], ...]:
    """(slope, intercept) of lines below R(D) at variance 1, nats: R(D) >= intercept - slope * D.

    Both signs of x and y are folded into one.
    """
    edges = np.arange(0, FARTHEST + STEP, STEP)
    mass = -np.diff(np.exp(-math.sqrt(2) * edges))
    p, x = mass / mass.sum(), 0.5 * (edges[1:] + edges[:-1])
    y = np.arange(0, FARTHEST, STEP)
    q = np.full(len(y), 1 / len(y))
    found = []
    for slope in SLOPES:
        kernel = 0.5 * (np.exp(-slope * (x[:, None] - y) ** 2) + np.exp(-slope * (x[:, None] + y) ** 2))
        for _ in range(ITERATIONS):
            weight = 1 / (kernel @ q)
            c = (p * weight) @ kernel
            q = np.maximum(q * c, 1e-300)
            q /= q.sum()
        weight = 1 / (kernel @ q)
        c = (p * weight) @ kernel
        found.append((float(slope), float(p @ np.log(weight) - math.log(c.max()))))
    return tuple(found)
