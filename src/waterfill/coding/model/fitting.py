"""The product-scale model of a matrix of codes with the shortest total message, by coordinate descent.

A factor or a tap stays only where it saves more bits than it takes. The steps are those of `search`.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from waterfill.coding import rice
from waterfill.coding.model import path_means
from waterfill.coding.model.costs import COST_UNIT, Coded, axis_costs, price_tables
from waterfill.coding.model.density_model import (
    MOST_SCALE,
    MOST_TAPS,
    TAP_UNIT,
    DensityModel,
    center,
    neighbors,
    predict,
    residuals,
    shifts,
)
from waterfill.coding.model.search import AXES, descend, descended, first_guess, rice_code, with_factors

__all__ = ["DensityModel", "center", "fit", "neighbors", "predict", "price_tables", "shifts", "side_bits", "total_bits"]

_ENTRIES_SAMPLED = 1 << 18
_ENTRIES_PER_FACTOR = 256  # entries of a row or column that its factor is fitted to, about
_FARTHEST = 255


def fit(codes: np.ndarray, kernel: tuple[int, ...], states: int = 0, sampled: int = _ENTRIES_SAMPLED) -> DensityModel:
    """The model of codes [rows, channels, positions] with the shortest total message, its own integers included.

    sampled: about how many entries of a larger matrix decide which factors there are. states: of the trellis that the
    codes run along, whose halves are coded: scales are those of k in z = 2k + b. 0 for none.
    """
    sample = _thin(codes, sampled)
    everything = tuple(name for name, size in zip(AXES, codes.shape, strict=True) if size > 1)
    coded = _coded(sample, kernel, None, states)
    fits = [_fit_scales(coded, None, everything)]
    if codes.shape[2] > 1:
        taps = _fit_taps(sample, kernel)
        if taps.any():
            predicted = _coded(sample, kernel, taps, states)
            fits.append(_fit_scales(predicted, taps, everything))
            coded = predicted if fits[1][0] < fits[0][0] else coded
    best = min(fits, key=lambda pair: pair[0])
    for left_out in _left_out(everything):
        axes = tuple(name for name in everything if name not in left_out)
        best = min(best, _fit_scales(coded, best[1].taps, axes), key=lambda pair: pair[0])
    model = best[1] if sample.shape == codes.shape else _refine(codes, sample, kernel, best[1], states)
    return _limited(sample, kernel, model, codes.shape, states)


def fit_like(
    codes: np.ndarray, kernel: tuple[int, ...], model: DensityModel, states: int = 0, sampled: int = _ENTRIES_SAMPLED
) -> DensityModel:
    """A model of these codes with the factors and taps of a model of similar ones: quicker than `fit`."""
    sample = _thin(codes, sampled)
    vectors = zip(AXES, (model.rows, model.channels, model.positions), strict=True)
    axes = tuple(name for name, vector in vectors if vector is not None and len(vector) > 1)
    fitted = _fit_scales(_coded(sample, kernel, model.taps, states), model.taps, axes)[1]
    fitted = fitted if sample.shape == codes.shape else _refine(codes, sample, kernel, fitted, states)
    return _limited(sample, kernel, fitted, codes.shape, states)


def _left_out(axes: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Row and channel factors, one of them or both."""
    both = tuple(name for name in axes if name != "positions")
    if len(both) == 2:
        yield from ((name,) for name in both)
    if both:
        yield both


def total_bits(codes: np.ndarray, kernel: tuple[int, ...], model: DensityModel, states: int = 0) -> float:
    """Ideal code length of codes [rows, channels, positions] under the model, without its own integers."""
    rows, channels, positions = model.factors(*codes.shape[:2])
    step = max(1, _ENTRIES_SAMPLED * 4 // max(1, codes.shape[1] * codes.shape[2]))
    cost = 0
    for start in range(0, len(codes), step):
        coded = _coded(codes[start : start + step], kernel, model.taps, states)
        factors = (rows[start : start + step], channels, positions)
        cost += int(axis_costs(coded, factors, model.shape, np.zeros(1), 2).sum())
    return cost / COST_UNIT


def base_offset(codes: np.ndarray, model: DensityModel, states: int = 0) -> float:
    """How far above the base of a flat model the best scale of codes [rows, 1, 1] or [rows, channels, positions] lies.

    In eighths of an octave, -1/2 to 1/2: the lowest point of a parabola through the bits under three bases.
    """
    coded = _coded(_thin(codes, _ENTRIES_SAMPLED), (), None, states)
    model = replace(model, rows=None, channels=None)  # which are zeros, of all rows
    deltas = np.array([-1, 0, 1])
    below, here, above = axis_costs(coded, coded.factors(model), model.shape, deltas, 2).sum(1).astype(np.float64)
    bend = below - 2 * here + above
    return float(np.clip((below - above) / (2 * bend), -0.5, 0.5)) if bend > 0 else 0.0


def side_bits(model: DensityModel) -> float:
    """About how many bits the model's own integers take."""
    vectors = (model.rows, model.channels, model.positions, model.taps)
    return 32.0 + sum(16 + rice_code(v)[0] for v in vectors if v is not None and len(v) > 1)


def _thin(codes: np.ndarray, sampled: int) -> np.ndarray:
    """Every n-th row and m-th channel, about `sampled` entries, in the same proportions."""
    rows, channels, positions = codes.shape
    ratio = codes.size / sampled
    if ratio <= 1:
        return codes
    keep_rows = max(min(rows, 64), int(rows / ratio**0.5))
    keep_channels = max(1, min(channels, sampled // (keep_rows * positions)))
    return codes[:: -(-rows // keep_rows), :: -(-channels // keep_channels)]


def _coded(codes: np.ndarray, kernel: tuple[int, ...], taps: np.ndarray | None, states: int) -> Coded:
    """The residuals of codes [rows, channels, positions], which may be a sample of rows and channels."""
    made = path_means.residuals if states else residuals
    return Coded(*made(codes, kernel, taps), halves=states > 0)


def _fit_scales(coded: Coded, taps: np.ndarray | None, axes: tuple[str, ...]) -> tuple[float, DensityModel]:
    """Bits, and the model with factors along these axes."""
    cost, model = descended(coded, first_guess(coded, axes, taps), axes)
    return cost / COST_UNIT + side_bits(model), model


def _refine(
    codes: np.ndarray, sample: np.ndarray, kernel: tuple[int, ...], model: DensityModel, states: int
) -> DensityModel:
    """Factors for all rows and channels of a large matrix, each axis from a thinned view of the other.

    model: of the sample.
    """
    rows, channels, positions = codes.shape
    views = {
        "rows": codes[:, :: max(1, channels * positions // _ENTRIES_PER_FACTOR)],
        "channels": codes[:: max(1, rows // _ENTRIES_PER_FACTOR)],
    }
    axes = tuple(name for name in AXES if getattr(model, name) is not None)
    thin = model
    for axis, (name, view) in enumerate(views.items()):
        if getattr(model, name) is not None:
            coded = _coded(view, kernel, model.taps, states)
            start = replace(first_guess(coded, axes), shape=model.shape, taps=model.taps)
            values = getattr(descend(coded, start, (name,), rounds=1), name)
            values = values - rice.center_of(values)
            model = with_factors(model, name, values)
            thin = with_factors(thin, name, values[:: -(-codes.shape[axis] // sample.shape[axis])])
    return replace(model, base=_best_base(_coded(sample, kernel, model.taps, states), thin))


def _best_base(coded: Coded, model: DensityModel) -> int:
    """The base near the model's at which the entries take the fewest bits."""
    factors = coded.factors(model)
    deltas = np.arange(-12, 13)
    halves = np.array_split(deltas, 2)  # few moves at once are quick
    cost = np.concatenate([axis_costs(coded, factors, model.shape, some, 0).sum(1) for some in halves])
    return int(np.clip(model.base + deltas[np.argmin(cost)], 0, MOST_SCALE))


def _limited(
    sample: np.ndarray, kernel: tuple[int, ...], model: DensityModel, size: tuple[int, ...], states: int
) -> DensityModel:
    """The model, or in the rare case that a reader would refuse its factors, one without them."""
    vectors = [v for v in (model.rows, model.channels, model.positions) if v is not None]
    if model.extent(*size[:2])[1] <= MOST_SCALE and all(np.abs(v).max() <= _FARTHEST for v in vectors):
        return model
    plain = first_guess(_coded(sample, kernel, model.taps, states), ())
    return replace(plain, shape=model.shape, taps=model.taps)


def _fit_taps(codes: np.ndarray, kernel: tuple[int, ...]) -> np.ndarray:
    """Least-squares weights of the neighbors (int64, sixteenths), every kernel first scaled to its row and channel."""
    size = np.abs(codes, dtype=np.float32) + np.float32(0.02)
    rows, channels = size.mean((1, 2)), size.mean((0, 2))
    scaled = codes / np.sqrt(rows[:, None, None] * channels[None, :, None])
    flat = scaled.reshape(-1, codes.shape[2]).astype(np.float64)
    moment = flat.T @ flat
    moment += np.eye(len(moment)) * (1e-3 * np.trace(moment) / len(moment) + 1e-12)
    taps = []
    for p, near in enumerate(neighbors(kernel)):
        if p:
            tap = np.rint(TAP_UNIT * np.linalg.solve(moment[np.ix_(near, near)], moment[near, p])).astype(np.int64)
            taps.append(tap if np.abs(tap).sum() <= MOST_TAPS else np.zeros_like(tap))
    return np.concatenate(taps)
