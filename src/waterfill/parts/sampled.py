"""Sampled: a family of densities, a scale and a seed; the weights are drawn from the density, the same everywhere.

It describes a matrix by its probability density alone, in the fewest bits of all parts. The weights themselves are not
kept, so that its distortion is about twice that of zeros.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from waterfill.coding.density_tables import SHAPES, SURVIVAL
from waterfill.coding.stream import Reader, Sink
from waterfill.errors import BadRecipe
from waterfill.importance import Importance
from waterfill.part import Part, Spec

UNIFORM = len(SHAPES)
_NAMES = {"normal": SHAPES.index(2.0), "laplace": SHAPES.index(1.0), "uniform": UNIFORM}
_CHUNK = 1 << 20
_UNIT = 24  # abscissas are integers in units of 2^-24 standard deviations
_SQRT3 = 29058990  # the edge of the uniform density, in those units
_LARGEST = 2.0**90  # of the unit: what is drawn stays below 2^30 units, so that every value is finite


@dataclass(frozen=True, eq=False)
class SampledPart(Part):
    """family: index into `SHAPES`, or `UNIFORM`. unit: 2^-24 standard deviations, a float32. seed: below 2^63."""

    family: int
    unit: float
    seed: int
    kind: ClassVar[int] = 8

    def dense(self) -> Tensor:
        values = np.empty(self.shape[0] * self.shape[1], dtype=np.float32)
        for begin in range(0, len(values), _CHUNK):
            chunk = values[begin : begin + _CHUNK]
            drawn = draw(self.family, self.seed, np.arange(begin, begin + len(chunk), dtype=np.uint64))
            chunk[:] = drawn.astype(np.float32) * np.float32(self.unit)
        return torch.from_numpy(values.reshape(self.shape))

    def write(self, out: Sink) -> None:
        out.uint(self.family)
        out.float32(self.unit)
        out.uint(self.seed)
        out.claim(self.shape[0] * self.shape[1])

    @classmethod
    def read(cls, src: Reader, shape: tuple[int, int]) -> Self:
        part = cls(shape, src.uint(UNIFORM), src.float32(), src.uint((1 << 63) - 1))
        if abs(part.unit) > _LARGEST:
            raise src.fail("a scale that no weights have")
        src.claim(shape[0] * shape[1])
        return part

    def describe(self) -> str:
        name = "uniform" if self.family == UNIFORM else f"generalized Gaussian {SHAPES[self.family]:g}"
        return f"sampled from {name}"


@dataclass(frozen=True)
class Sampled(Spec):
    """Weights drawn from a density with the root mean square of the target; the weights themselves are not kept.

    Args:
        family: "normal", "laplace", "uniform", or None for the one of largest likelihood, generalized Gaussians
            included.
        seed: of the draw, 0 to 2^63 - 1.

    Raises:
        BadRecipe: arguments outside these.

    Example:
        >>> part = Sampled("laplace").fit(weight, Importance(), price=1e-4)
    """

    family: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.family is not None and self.family not in _NAMES:
            raise BadRecipe(f"Sampled: family={self.family!r} is not one of None, {', '.join(map(repr, _NAMES))}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 63:
            raise BadRecipe(f"Sampled: seed={self.seed!r} is not an integer from 0 to 2^63 - 1")

    def __repr__(self) -> str:
        given = (("family", self.family, None), ("seed", self.seed, 0))
        return f"Sampled({', '.join(f'{name}={value!r}' for name, value, default in given if value != default)})"

    def fit(self, target: Tensor, importance: Importance, price: float, start: Part | None = None) -> Part:
        deviation = float(target.double().square().mean().sqrt())
        family = _likeliest(target.numpy()) if self.family is None else _NAMES[self.family]
        unit = float(np.float32(math.ldexp(deviation, -_UNIT)))
        return SampledPart((target.shape[0], target.shape[1]), family, unit, self.seed)


def draw(family: int, seed: int, index: np.ndarray) -> np.ndarray:
    """Entry `index` [n] (uint64) of the draw: an integer (int64) in units of 2^-24 standard deviations.

    SplitMix64 of seed and index (Steele, Lea, Flood, 2014): the top bit is the sign, the next 29 are u. For a
    generalized Gaussian |x| solves S(x) = 2^29 - u for the frozen survival function S, linear between its points; for
    the uniform density |x| = floor(u * sqrt(3) * 2^24 / 2^29). Integers only, so every machine draws the same.
    """
    bits = _splitmix(np.uint64(seed) + (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    u = (bits >> np.uint64(34)).astype(np.int64) & (1 << 29) - 1
    negative = (bits >> np.uint64(63)).astype(bool)
    magnitude = u * _SQRT3 >> 29 if family == UNIFORM else _quantile((1 << 29) - u, family)
    return np.where(negative, -magnitude, magnitude)


def _splitmix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _quantile(mass: np.ndarray, family: int) -> np.ndarray:
    """The abscissa above which this mass [n] (1 .. 2^29) lies; the frozen points are j^2 * 2^12 of our units."""
    survival = np.asarray((*SURVIVAL[family], 0), dtype=np.int64)
    j = np.searchsorted(-survival, -mass, side="right") - 1  # survival[j] >= mass > survival[j + 1]
    drop = survival[j] - survival[j + 1]
    return (j * j << _UNIT - 12) + ((2 * j + 1) << _UNIT - 12) * (survival[j] - mass) // drop


def _likeliest(values: np.ndarray) -> int:
    """The family of largest likelihood, each at its own maximum-likelihood scale: a^beta = beta * mean |x|^beta."""
    magnitude = np.abs(values).astype(np.float64)
    largest = float(magnitude.max())
    if largest == 0:
        return UNIFORM

    def log_likelihood(beta: float) -> float:
        moment = float(((magnitude / largest) ** beta).mean())
        return math.log(beta / 2) - math.lgamma(1 / beta) - (math.log(beta * moment) + 1) / beta

    scores = [log_likelihood(beta) for beta in SHAPES] + [math.log(0.5)]
    return int(np.argmax(scores))
