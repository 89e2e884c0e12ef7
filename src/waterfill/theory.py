"""The least bits at a given distortion: reverse water-filling for Gaussian sources, for a layer and for a network.

Weights are modelled as independent Gaussians whose variance is a row's times a column's (times a kernel position's)
factor. In the metric D(E) = 1/2 sum_o g_o E_o A E_o^T the components of a matrix are then the products of two short
lists of variances; those above one level get its distortion, those below get no bits (Cover and Thomas, 10.3.3).
Among all sources of these variances the Gaussian one needs the most bits, so a coder that knows more of its weights may
end below the bound of this model; none can end below it on weights that are as modelled.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from waterfill.errors import BadInput
from waterfill.importance import Importance

_BEHIND = 8  # entries behind each number of a factor; with fewer it describes the entries themselves
_ROUNDS = 8
_WIDE = 2048  # columns; beyond, eigenvalues are found in float32
_LEVEL_HALVINGS = 60
_SMALLEST = 1e-20  # of the mean variance; less is none


def gaussian_rate(variance: float, distortion: float) -> float:
    """R(D) = max(0, 1/2 log2(variance / D)) bits per entry of a Gaussian source at the mean squared error D."""
    _refuse(not distortion > 0, "distortion", distortion, "must be positive: exact real numbers take infinite bits")
    return 0.5 * math.log2(variance / distortion) if variance > distortion else 0.0


@dataclass(frozen=True)
class Water:
    """level: of the water. rate: bits of all components. distortion: sum of their squared errors."""

    level: float
    rate: float
    distortion: float


def reverse_water_filling(
    variances: Any, *, level: float | None = None, distortion: float | None = None, rate: float | None = None
) -> Water:
    """The optimum of independent Gaussian components of these variances [n], at one of the three things given.

    R = sum max(0, 1/2 log2(variance / level)) bits, D = sum min(variance, level) (Cover and Thomas, theorem 10.3.3);
    exact. A rate of zero has the largest variance as its level. Raises BadInput.
    """
    up = np.sort(np.asarray(variances, dtype=np.float64).reshape(-1))
    _refuse(not bool((np.isfinite(up) & (up >= 0)).all()), "variances", "a list", "holds what no variance can be")
    given = [value for value in (level, distortion, rate) if value is not None]
    _refuse(len(given) != 1, "reverse_water_filling", given, "give one of level, distortion and rate")
    _refuse(not 0 <= given[0] < math.inf, "reverse_water_filling", given[0], "give a finite number, zero or more")
    up = up[up > 0]
    if len(up) == 0:
        return Water(0.0 if level is None else level, 0.0, 0.0)
    above = len(up) - np.arange(len(up))  # components at or above each breakpoint
    if distortion is not None:
        level = _level_of_distortion(up, above, distortion)
    elif rate is not None:
        logs = np.log2(up)
        tails = np.cumsum(logs[::-1])[::-1]
        at = int(np.argmax(0.5 * (tails - above * logs) <= rate))
        level = min(float(2.0 ** ((tails[at] - 2 * rate) / above[at])), float(up[-1]))
    assert level is not None
    wet = up[up > level]
    bits = 0.5 * float(np.log2(wet / level).sum()) if level > 0 else math.inf
    return Water(level, bits, float(np.minimum(up, level).sum()))


def _level_of_distortion(up: np.ndarray, above: np.ndarray, distortion: float) -> float:
    """The level at which components of ascending variances have this distortion, at most the largest variance."""
    below = np.concatenate([[0.0], np.cumsum(up)[:-1]])
    reached = below + above * up >= distortion
    if not reached.any():
        return float(up[-1])
    at = int(np.argmax(reached))
    return float((distortion - below[at]) / above[at])


def linear_rate(weights: Any, inputs: Any, distortion: float) -> float:
    """R(D) in bits of f(x) = w^T x, w ~ N(0, weights [n, n]), at D = E (f - f^)^2 with E x x^T = inputs [n, n]; exact.

    y = A^(1/2) w turns D into a squared error, so R(D) is that of the eigenvalues of A^(1/2) S A^(1/2).
    """
    S, A = (np.asarray(m, dtype=np.float64) for m in (weights, inputs))
    values, vectors = np.linalg.eigh(S)
    half = vectors * np.sqrt(values.clip(0))
    spectrum = np.linalg.eigvalsh(half.T @ A @ half).clip(0)
    return reverse_water_filling(spectrum, distortion=distortion).rate


def linear_rate_bound(weights: Any, inputs: Any, distortion: float) -> float:
    """The lower bound on `linear_rate` of Gao, Wang, Oh (arXiv 1810.06401, theorem for linear models), bits.

    1/2 log2 det S - sum 1/2 log2 D_i with D_i = mu / a_i, at most v_i; a_i are the eigenvalues of the inputs' second
    moment, v_i the variances of w along its eigenvectors, and mu is such that sum a_i D_i = D. Equal to the rate where
    the two matrices commute, and wherever no D_i is at its bound.
    """
    S, A = (np.asarray(m, dtype=np.float64) for m in (weights, inputs))
    a, vectors = np.linalg.eigh(A)
    v = np.einsum("ji,jk,ki->i", vectors, S, vectors)
    sign, logarithm = np.linalg.slogdet(S)
    _refuse(sign <= 0, "weights", "a covariance", "is singular; the bound needs one of full rank")
    spare = 0.5 * (logarithm / math.log(2) - float(np.log2(v).sum()))
    return max(0.0, spare + reverse_water_filling(a.clip(0) * v, distortion=distortion).rate)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Variances of the components of one matrix in its error metric: rows [rows] times cols [cols], in nats * 2."""

    rows: np.ndarray
    cols: np.ndarray

    @classmethod
    def of(cls, target: Tensor, importance: Importance) -> "Spectrum":
        """Of a weight [rows, cols]: its measured product of variances, and the eigenvalues of A under them.

        Raises BadInput where the importance does not fit.
        """
        importance.check(target.shape[0], target.shape[1])
        by_row, by_col = product_variances(target, importance.positions)
        rows = importance.rows.double().numpy() * by_row
        if importance.gram is None:
            return cls(rows, importance.diagonal.double().numpy() * by_col)
        kind = torch.float64 if len(importance.gram) <= _WIDE else torch.float32
        scale = torch.from_numpy(by_col).sqrt().to(kind).reshape(-1, len(importance.gram))
        metric = scale[:, :, None] * importance.gram.to(kind) * scale[:, None, :]
        return cls(rows, torch.linalg.eigvalsh(metric).double().clamp_min(0).reshape(-1).numpy())

    @property
    def entries(self) -> int:
        """Entries of the matrix."""
        return len(self.rows) * len(self.cols)

    @property
    def largest(self) -> float:
        """The largest component: the level from which on there are no bits."""
        return float(self.rows.max(initial=0)) * float(self.cols.max(initial=0))

    def at(self, level: float) -> tuple[float, float]:
        """Bits and nats at a level above zero."""
        down, logs, tails = self._sums
        with np.errstate(divide="ignore", invalid="ignore"):
            dry = np.where(self.rows > 0, level / self.rows, np.inf)
        count = len(down) - np.searchsorted(down[::-1], dry, side="right")
        with np.errstate(divide="ignore"):
            shares = np.where(count > 0, np.log2(self.rows / level), 0.0)
        bits = 0.5 * float((count * shares + logs[count]).sum())
        return bits, 0.5 * float((count * level + self.rows * tails[count]).sum())

    @cached_property
    def _sums(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """cols, largest first; sums of the logarithms of the first k of them, and of all but the first k."""
        down = np.sort(self.cols)[::-1]
        with np.errstate(divide="ignore"):
            logs = np.concatenate([[0.0], np.cumsum(np.log2(down))])
        return down, logs, np.concatenate([np.cumsum(down[::-1])[::-1], [0.0]])


def product_variances(target: Tensor, positions: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Variances [rows] and [cols] whose products describe a weight [rows, cols] best, of mean zero; float64.

    A column's is its channel's times its kernel position's. By maximum likelihood, in turns; each of the three factors
    only where it saves more than half the logarithm of the entries behind each of its numbers (Schwarz 1978).
    """
    square = target.detach().float().square()
    mean = float(square.mean(dtype=torch.float64)) if square.numel() else 0.0
    if not _SMALLEST < mean < math.inf:
        square = target.detach().double().square()
        mean = float(square.mean()) if square.numel() else 0.0
    rows, cols = square.shape
    shape = (rows, cols // positions, positions)
    factors = [np.ones(n) for n in shape]
    if mean <= 0:
        return np.zeros(rows), np.zeros(cols)
    square = square / mean
    kept = [axis for axis in range(3) if _pays(_marginal(square, factors, axis), square.numel())]
    for _ in range(_ROUNDS if len(kept) > 1 else len(kept)):
        for axis in kept:
            factors[axis] = _marginal(square, factors, axis)
    by_col = np.outer(factors[1], factors[2]).reshape(-1)
    return mean * factors[0], by_col


def _marginal(square: Tensor, factors: list[np.ndarray], axis: int) -> np.ndarray:
    """The factor along one axis that is best given the other two: mean squares over what the others predict."""
    u, v, w = (np.divide(1.0, f, out=np.zeros_like(f), where=f > _SMALLEST) for f in factors)
    live = [max(1, int((f > 0).sum())) for f in (u, v, w)]
    if axis == 0:
        across = torch.from_numpy(np.outer(v, w).reshape(-1)).to(square)
        return (square @ across).double().numpy() / (live[1] * live[2])
    down = (torch.from_numpy(u).to(square) @ square).double().numpy().reshape(len(v), len(w))
    return down @ w / (live[0] * live[2]) if axis == 1 else v @ down / (live[0] * live[1])


def _pays(factor: np.ndarray, entries: int) -> bool:
    """Whether a factor shortens the message by more than its own numbers take."""
    behind = entries / max(1, len(factor))
    if len(factor) < 2 or behind < _BEHIND:
        return False
    floored = np.maximum(factor, _SMALLEST)
    saved = 0.5 * entries * (math.log2(floored.mean()) - float(np.log2(floored).mean()))
    return saved > 0.5 * len(factor) * math.log2(behind)


@dataclass(frozen=True)
class Limit:
    """One point of a bound: the level of the water, bits of all entries, nats of all errors."""

    level: float
    entries: int
    bits: float
    nats: float

    @property
    def rate(self) -> float:
        """Bits per weight."""
        return self.bits / max(1, self.entries)

    @property
    def price(self) -> float:
        """Nats that one bit more would save."""
        return self.level * math.log(2)


@dataclass(frozen=True, eq=False)
class NetworkLimit:
    """The bound of a network: the spectra of the matrices of each of its weights."""

    layers: Mapping[str, tuple[Spectrum, ...]]

    @property
    def entries(self) -> int:
        """Weights that the bound covers."""
        return sum(s.entries for s in self._spectra())

    def at(self, level: float) -> Limit:
        """The bound at one level for all weights."""
        return self._sum(self._spectra(), level)

    def by_layer(self, level: float) -> dict[str, Limit]:
        """The contribution of each weight to `at(level)`."""
        return {name: self._sum(spectra, level) for name, spectra in self.layers.items()}

    def curve(self, levels: Iterable[float]) -> list[Limit]:
        """Points of the curve at these levels."""
        return [self.at(level) for level in levels]

    def at_rate(self, bits: float) -> Limit:
        """The bound at so many bits per weight, zero or more."""
        _refuse(not 0 <= bits < math.inf, "bits", bits, "give a finite number of bits per weight, zero or more")
        return self._solve(lambda limit: limit.rate >= bits)

    def at_nats(self, nats: float) -> Limit:
        """The bound at a distortion of all weights together, above zero."""
        _refuse(not 0 < nats < math.inf, "nats", nats, "give a positive distortion: none at all takes infinite bits")
        return self._solve(lambda limit: limit.nats <= nats)

    def gap(self, bits: float, nats: float) -> float:
        """Bits per weight that a result of `bits` per weight lies above the bound at its distortion `nats`."""
        return bits - self.at_nats(nats).rate

    def _solve(self, reached: Any) -> Limit:
        """The highest level at which the condition, which holds at low ones, is met."""
        high = max((s.largest for s in self._spectra()), default=0.0)
        if high == 0 or reached(self.at(high)):
            return self.at(high) if high else Limit(0.0, self.entries, 0.0, 0.0)
        low = high / 4
        while not reached(self.at(low)) and low > high * 2.0**-200:
            high, low = low, low / 16
        for _ in range(_LEVEL_HALVINGS):
            middle = math.sqrt(low) * math.sqrt(high)  # their product may underflow
            low, high = (middle, high) if reached(self.at(middle)) else (low, middle)
        return self.at(low)

    def _sum(self, spectra: Iterable[Spectrum], level: float) -> Limit:
        entries, bits, nats = 0, 0.0, 0.0
        for spectrum in spectra:
            more = spectrum.at(level)
            entries, bits, nats = entries + spectrum.entries, bits + more[0], nats + more[1]
        return Limit(level, entries, bits, nats)

    def _spectra(self) -> list[Spectrum]:
        return [s for spectra in self.layers.values() for s in spectra]


def _refuse(wrong: bool, what: str, given: Any, advice: str) -> None:
    """Raise BadInput if something is wrong."""
    if wrong:
        raise BadInput(f"{what} {given}: {advice}")
