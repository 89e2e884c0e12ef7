"""The importance that is assumed of a weight where only its values are known (docs/theory.md, *Without data*)."""

import math

import torch
from torch import Tensor

from waterfill.importance import Importance, smooth_gram
from waterfill.network.layout import VECTOR, Layout

SMOOTHNESS = 0.75
"""Correlation of neighboring inputs assumed for smooth kernels without data (docs/decisions.md has the measurement)."""
_OF_WHITE, _SMOOTH = 0.25, 0.3  # correlation of inputs where neighbors in a kernel have none; theirs in smooth kernels
SIZE_EXPONENT = 0.2
"""Without data a relative error of a weight of n entries costs n^SIZE_EXPONENT (docs/decisions.md)."""


def without_data(target: Tensor, kernel: tuple[int, ...] = (), entries: int | None = None) -> Importance:
    """Importance of a weight [rows, cols] of which only the values are known.

    A squared error counts relative to the weight's own energy. Inputs of spatial kernels are assumed to have the
    correlation that `expected_correlation` estimates. The energy is the least of that under this correlation and under
    SMOOTHNESS, so that errors in difference kernels, which pass little of smooth inputs, count more.
    `entries`: how many the whole weight has, where `target` is a sample of its rows.
    """
    entries = entries or target.numel()
    plain = Importance(kernel=kernel)
    energy = plain.inner(target, target)
    if math.prod(kernel) > 1:
        plain = Importance(gram=smooth_gram(kernel, expected_correlation(target, kernel)), kernel=kernel)
        smooth = Importance(gram=smooth_gram(kernel, SMOOTHNESS), kernel=kernel)
        energy = min(plain.inner(target, target), smooth.inner(target, target))
    energy *= entries / max(target.numel(), 1)
    return plain.scaled(entries**SIZE_EXPONENT / energy if energy > 0 else 1.0)


def expected_correlation(target: Tensor, kernel: tuple[int, ...]) -> float:
    """The correlation of neighboring inputs, estimated from spatial kernels [rows, channels * positions].

    Where inputs are smooth, so are kernels, by the mean correlation of their neighbors; a network that distinguishes
    noise from structure has white ones. From 0 for difference kernels to SMOOTHNESS.
    """
    kernels = target.double().reshape(-1, *kernel)
    square = kernels.square().mean().clamp_min(1e-300)
    long = [axis for axis, size in enumerate(kernel, 1) if size > 1]
    pairs = [
        kernels.narrow(axis, 1, kernels.shape[axis] - 1) * kernels.narrow(axis, 0, kernels.shape[axis] - 1)
        for axis in long
    ]
    own = float(torch.stack([product.mean() for product in pairs]).mean() / square)
    return min(max(_OF_WHITE + (SMOOTHNESS - _OF_WHITE) * own / _SMOOTH, 0.0), SMOOTHNESS)


ROWS, COLUMNS = "rows", "columns"
_LEAST_ENERGY = 1e-4  # of the mean; below, a row or column is dead


def line_by_line(target: Tensor, lines: str, entries: int | None = None) -> Importance:
    """`without_data` where the errors of every single row, or column, count relative to its own energy.

    target: [rows, cols]. lines: ROWS or COLUMNS. entries: as in `without_data`.
    """
    entries = entries or target.numel()
    energies = target.double().square().mean(1 if lines == ROWS else 0)
    each = 1 / energies.clamp_min(max(_LEAST_ENERGY * float(energies.mean()), 1e-60))
    plain = Importance(rows=each) if lines == ROWS else Importance(diagonal=each)
    energy = plain.inner(target, target) * entries / max(target.numel(), 1)
    return plain.scaled(entries**SIZE_EXPONENT / energy if energy > 0 else 1.0)


def entrywise(vector: Tensor) -> Importance:
    """Importance of a bias, norm or statistic [1, n]: the relative error of every single entry counts."""
    square = vector.double().square().reshape(-1)
    floor = 1e-8 * square.mean().clamp_min(1e-60)
    weight = float(vector.numel()) ** (SIZE_EXPONENT - 1)
    return Importance(torch.tensor(weight, dtype=torch.float64, device="cpu"), 1 / square.clamp_min(floor))


def assumed(target: Tensor, layout: Layout, lines: str = "") -> Importance:
    """The importance that is assumed of a matrix, or of some of its rows, from its values alone.

    lines: as of a `Weight`.
    """
    if layout.role == VECTOR:
        return entrywise(target)
    if lines:
        return line_by_line(target, lines, math.prod(layout.matrix))
    return without_data(target, layout.kernel, math.prod(layout.matrix))
