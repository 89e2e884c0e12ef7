"""The search for the integers of a product-scale model, for given taps: guess the factors, then descend axis by axis.

The compiled core takes the same steps as the NumPy form here, which is what it is tested against.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np

from waterfill.coding import density, native, rice
from waterfill.coding.density_tables import SHAPES
from waterfill.coding.model.costs import COST_UNIT, Coded, all_costs, axis_costs, cost_tables, distinct, place
from waterfill.coding.model.density_model import MOST_SCALE, DensityModel

AXES = ("rows", "channels", "positions")
ROUNDS = 2
_GUESSES = 3  # rounds of scaling
_MAGNITUDE_OF_ZEROS = 0.02  # added to magnitudes, so that rows of zeros have a factor
_PARAMETERS = 6


def first_guess(coded: Coded, axes: tuple[str, ...], taps: np.ndarray | None = None) -> DensityModel:
    """Factors from mean magnitudes, along these axes: a few rounds of scaling, in the logarithmic domain."""
    logs = [np.zeros(n) for n in coded.residual.shape]
    rounds = _GUESSES if axes else 0
    if native.core is not None:
        arguments = (coded.residual, coded.phases, *logs, _mask(axes), rounds, coded.halves)
        scale = native.core.scale_rounds(*arguments)
    else:
        scale = _scale_rounds(coded, logs, axes, rounds)
    return DensityModel(
        shape=3,
        base=int(np.clip(np.rint(8 * np.log2(scale)) + density.SCALE_ZERO, 0, MOST_SCALE)),
        rows=np.rint(4 * logs[0]).astype(np.int64) if "rows" in axes else None,
        channels=np.rint(4 * logs[1]).astype(np.int64) if "channels" in axes else None,
        positions=np.rint(8 * logs[2]).astype(np.int64),
        taps=taps,
    )


def _scale_rounds(coded: Coded, logs: list[np.ndarray], axes: tuple[str, ...], rounds: int) -> float:
    """Add to the logs the result of rounds of scaling; returns the root mean square of the scaled entries."""
    size = np.abs(coded.residual - coded.phases / 8 if coded.halves else coded.residual.astype(np.float64))
    for _ in range(rounds):
        for axis, name in enumerate(AXES):
            if name in axes:
                mean = _mean_along(axis, size + _MAGNITUDE_OF_ZEROS, logs)
                logs[axis] += np.log2(mean / mean.mean())
    return float(np.sqrt(_mean_along(0, np.square(size), [2 * log for log in logs]).mean() + 1e-4))


def _mean_along(axis: int, values: np.ndarray, logs: list[np.ndarray]) -> np.ndarray:
    """Means along one axis of values [rows, channels, positions] divided by their scales, 2 to the sum of the logs."""
    rows, channels, positions = (2**-log for log in logs)
    scaled = values * rows[:, None, None] * channels[:, None] * positions
    return scaled.mean(tuple(other for other in range(3) if other != axis))


def descended(coded: Coded, model: DensityModel, axes: tuple[str, ...]) -> tuple[float, DensityModel]:
    """The cost of the entries in `COST_UNIT`s, and the model with the best shape and base after moves along axes."""
    if native.core is not None:
        return _compiled(coded, model, axes, ROUNDS, shaped=True)
    model = _best_shape(coded, descend(coded, _best_shape(coded, model), axes))
    return float(axis_costs(coded, coded.factors(model), model.shape, np.zeros(1), 2).sum()), model


def descend(coded: Coded, model: DensityModel, axes: tuple[str, ...], rounds: int = ROUNDS) -> DensityModel:
    """Move every factor by the step that saves most, its own bits included, axis by axis."""
    if native.core is not None:
        return _compiled(coded, model, axes, rounds, shaped=False)[1]
    moves = np.array([-2, -1, 0, 1, 2])
    for _ in range(rounds):
        for axis, name in enumerate(AXES):
            if name not in axes:
                continue
            unit = 1 if name == "positions" else 2
            cost = axis_costs(coded, coded.factors(model), model.shape, moves * unit, axis)
            values = getattr(model, name)
            _, middle, k = rice_code(values)
            own = (rice.zigzag(values + moves[:, None] - middle) >> k) + 1 + k
            model = with_factors(model, name, values + moves[np.argmin(cost + own * COST_UNIT, axis=0)])
    return model


def _compiled(
    coded: Coded, model: DensityModel, axes: tuple[str, ...], rounds: int, *, shaped: bool
) -> tuple[float, DensityModel]:
    """`descended` and `descend` by the compiled core."""
    vectors = (model.rows, model.channels, model.positions)
    factors = [
        np.zeros(n, np.int64) if values is None else values.astype(np.int64)
        for values, n in zip(vectors, coded.residual.shape, strict=True)
    ]
    head = np.array([model.shape, model.base])
    tables = (_tables(coded.halves), all_costs(), coded.most_scale)
    assert native.core is not None
    cost = native.core.descend_model(coded.residual, coded.phases, head, *factors, *tables, _mask(axes), rounds, shaped)
    rows, channels = (None if before is None else after for before, after in zip(vectors[:2], factors[:2], strict=True))
    return float(cost), DensityModel(int(head[0]), int(head[1]), rows, channels, factors[2], model.taps)


@lru_cache(maxsize=2)
def _tables(halves: bool) -> np.ndarray:
    """`cost_tables` of every shape, int32 [shapes, phases, 256, scales]."""
    return np.stack([cost_tables(shape, halves) for shape in range(len(SHAPES))])


def _mask(axes: tuple[str, ...]) -> int:
    """One bit for each axis."""
    return sum(1 << axis for axis, name in enumerate(AXES) if name in axes)


def _best_shape(coded: Coded, model: DensityModel) -> DensityModel:
    """The shape of the family, and the base scale with it, that code these residuals in the fewest bits."""
    residual, scale, phase, count = distinct(coded, coded.factors(model))
    deltas = np.array([-4, -2, -1, 0, 1, 2, 4])
    where, raw = place(residual, scale + deltas[:, None], phase, coded.most_scale)
    cost = (count[:, None] * all_costs()[where]).sum(1) + (raw @ count * COST_UNIT)[:, None]
    shape, delta = np.divmod(np.argmin(cost.T), len(deltas))
    return replace(model, shape=int(shape), base=int(np.clip(model.base + deltas[delta], 0, MOST_SCALE)))


def with_factors(model: DensityModel, name: str, values: np.ndarray | None) -> DensityModel:
    """The model with other factors along one axis."""
    changed = {axis: getattr(model, axis) for axis in AXES} | {name: values}
    return DensityModel(model.shape, model.base, taps=model.taps, **changed)


def rice_code(values: np.ndarray) -> tuple[int, int, int]:
    """Bits, center and parameter of a Rice coded vector (int64)."""
    if native.core is not None:
        bits, middle, k = native.core.rice_code(values)
        return int(bits), int(middle), int(k)
    middle = rice.center_of(values)
    folded = rice.zigzag(values - middle)
    k = rice.best_parameter(folded, _PARAMETERS)
    return int(rice.rice_bits(folded, k)), middle, k
