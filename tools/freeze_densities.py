"""Print `src/waterfill/coding/frozen.py`: the survival function of the generalized Gaussian family as integers.

Run once, by hand, when the family changes (that is a new format version); the library itself never evaluates
a transcendental function between bytes and codes. Needs scipy:

    python tools/freeze_densities.py > src/waterfill/coding/frozen.py
"""

import numpy as np
from scipy.special import gamma, gammaincc

SHAPES = (0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.4)
POINTS = 257  # x_j = (j / 64)^2 standard deviations, so up to 16
TOTAL = 1 << 30  # the whole mass; a half of it lies above zero


def survival(shape: float) -> np.ndarray:
    """P(X > x_j) of the density exp(-|x / a|^shape) with standard deviation 1, in units of 1 / TOTAL."""
    x = (np.arange(POINTS) / 64.0) ** 2
    a = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return np.rint(0.5 * TOTAL * gammaincc(1 / shape, (x / a) ** shape)).astype(np.int64)


def main() -> None:
    print('"""Frozen by tools/freeze_densities.py, never edited: the generalized Gaussian family as integers.')
    print()
    print("`SURVIVAL[b][j]` is the mass above `(j / 64)^2` standard deviations of the density of shape `SHAPES[b]`,")
    print("in units of 2^-30 of the whole; `OCTAVE[i]` is 2^(i / 8) in units of 2^-16.")
    print('"""')
    print()
    print(f"SHAPES = {SHAPES}")
    print(f"OCTAVE = {tuple(round(2 ** (i / 8) * 65536) for i in range(8))}")
    print("# fmt: off")
    print("SURVIVAL = (")
    for shape in SHAPES:
        words = [str(v) for v in survival(shape)]
        print("    (")
        line = "       "
        for word in words:
            if len(line) + len(word) + 2 > 118:
                print(line)
                line = "       "
            line += f" {word},"
        print(line)
        print("    ),")
    print(")")
    print("# fmt: on")


if __name__ == "__main__":
    main()
