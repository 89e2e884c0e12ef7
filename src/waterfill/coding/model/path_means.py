"""Means and residuals of codes along a trellis: those of k in z = 2k + b, whose parity b the state gives."""

from collections.abc import Iterator

import numpy as np

from waterfill.coding.model.density_model import center, neighbors, predict


def half_mean(mean_z: np.ndarray) -> np.ndarray:
    """The mean of k in eighths where the parity is 0, from that of z; where it is 1 the mean is 4 less."""
    return mean_z >> 1


def half_means(planes: list[np.ndarray], kernel: tuple[int, ...], taps: np.ndarray | None) -> Iterator[np.ndarray]:
    """The half mean (int32 [...]) of every kernel position from the codes [...] of the positions before it.

    `planes` may grow while this runs, one plane after each mean.
    """
    yield np.zeros(1, np.int32)
    start = 0
    for p, near in enumerate(neighbors(kernel) if kernel else ()):
        if p:
            tap = np.zeros(1, np.int64) if taps is None else taps[start : start + len(near)]
            yield half_mean(predict(planes, near, tap)) if tap.any() else np.zeros(1, np.int32)
        start += len(near)


def split(codes: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residuals (int32) of codes [...] under half means, and the magnitudes of the phases (uint8), at codes' parities.

    The residual is k less the nearest integer of the mean, mirrored where the phase is negative.
    """
    whole, phase = center(mean - 4 * (codes & 1))
    k = codes >> 1
    return np.where(phase < 0, whole - k, k - whole), np.abs(phase).astype(np.uint8)


def residuals(codes: np.ndarray, kernel: tuple[int, ...], taps: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Residuals (int32) and phases (uint8) of codes [rows, channels, positions], whether or not they keep to a path."""
    residual, phases = np.empty(codes.shape, np.int32), np.empty(codes.shape, np.uint8)
    planes = [np.ascontiguousarray(codes[:, :, p], dtype=np.int32) for p in range(codes.shape[2])]
    for p, mean in enumerate(half_means(planes, kernel, taps)):
        residual[:, :, p], phases[:, :, p] = split(planes[p], mean)
    return residual, phases
