"""A matrix of codes under densities that the decoder already knows entry by entry (DESIGN 6.1).

Codes z [rows, channels, positions] follow a generalized Gaussian whose scale is a product of a row's, a channel's and a
position's factor, and whose mean, for spatial kernels, is predicted from the positions already decoded. Everything the
decoder needs is a handful of integers; a factor or a tap stays only where it pays for its own bits.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from waterfill.coding import density, integers
from waterfill.coding.compiled import native

MOST_POSITIONS = 1024
NEAREST = 8
TAP_UNIT = 16  # taps are in sixteenths
_SAMPLE = 1 << 18


@dataclass(frozen=True, eq=False)
class Product:
    """The integers of the model.

    shape: index into the family. base: scale index where all factors are zero. rows [R], channels [C]: factors in
    quarters of an octave, or None. positions [P]: factors in eighths. taps [n]: prediction weights in sixteenths, the
    positions' neighbors one after the other, or None.
    """

    shape: int
    base: int
    rows: np.ndarray | None
    channels: np.ndarray | None
    positions: np.ndarray
    taps: np.ndarray | None

    @property
    def phases(self) -> int:
        """How many phases of each table are in use."""
        return 1 if self.taps is None else density.PHASES

    def factors(self, rows: int, channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scale indices as a sum of three vectors (int32), base included in the first."""
        first = np.zeros(rows, np.int32) if self.rows is None else 2 * self.rows.astype(np.int32)
        second = np.zeros(channels, np.int32) if self.channels is None else 2 * self.channels.astype(np.int32)
        return first + np.int32(self.base), second, self.positions.astype(np.int32)


@lru_cache(maxsize=256)
def neighbors(kernel: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """For every kernel position, in raster order, the nearest positions before it (at most `NEAREST`, ascending)."""
    at = np.stack(np.unravel_index(np.arange(int(np.prod(kernel))), kernel), axis=1)
    near = []
    for p in range(len(at)):
        distance = ((at[:p] - at[p]) ** 2).sum(1)
        near.append(np.sort(np.argsort(distance, kind="stable")[:NEAREST]))
    return tuple(near)


def predict(earlier: list[np.ndarray], near: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Mean of the next position's codes in eighths of a step (int32), from the arrays of the positions before it."""
    mean = np.zeros(earlier[0].shape, dtype=np.int32)
    for q, tap in zip(near, taps, strict=True):
        if tap:
            mean += np.int32(tap) * earlier[q]
    return mean >> 1


def center(mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split a mean in eighths into the nearest integer and the phase -4 .. 3 that is left."""
    whole = (mean + 4) >> 3
    return whole, mean - (whole << 3)


def residuals(codes: np.ndarray, kernel: tuple[int, ...], taps: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Residuals (int32) and phases (uint8) of codes [rows, channels, positions]; mirrored where the phase is negative."""
    if taps is None:
        return np.ascontiguousarray(codes, dtype=np.int32), np.zeros((0, 0, 0), dtype=np.uint8)
    planes = [np.ascontiguousarray(codes[:, :, p], dtype=np.int32) for p in range(codes.shape[2])]
    residual = np.empty(codes.shape, dtype=np.int32)
    phases = np.zeros(codes.shape, dtype=np.uint8)
    residual[:, :, 0] = planes[0]
    start = 0
    for p, near in enumerate(neighbors(kernel)):
        if p:
            whole, phase = center(predict(planes, near, taps[start : start + len(near)]))
            residual[:, :, p] = (planes[p] - whole) * np.where(phase < 0, -1, 1)
            phases[:, :, p] = np.abs(phase)
        start += len(near)
    return residual, phases


@lru_cache(maxsize=32)
def _prices(shape: int) -> np.ndarray:
    return np.ascontiguousarray(density.price_list(density.family(shape)))


def axis_bits(
    residual: np.ndarray, phases: np.ndarray, factors: tuple[np.ndarray, ...], prices: np.ndarray, deltas: np.ndarray, axis: int
) -> np.ndarray:
    """Bits [deltas, length of axis] when every scale index moves by each of deltas; the compiled loop if there is one."""
    deltas = np.asarray(deltas, dtype=np.int32)
    if native is not None:
        out = np.empty((len(deltas), residual.shape[axis]))
        native.axis_bits(residual, phases, *factors, prices, deltas, axis, out)
        return out
    others = tuple(i for i in range(3) if i != axis)
    rows, channels, positions = factors
    scale = rows[:, None, None] + channels[None, :, None] + positions
    phase = phases if phases.size else 0
    return np.stack([_bits(residual, scale + d, phase, prices).sum(others, dtype=np.float64) for d in deltas])


def _bits(residual: np.ndarray, scale: np.ndarray, phase: "np.ndarray | int", prices: np.ndarray) -> np.ndarray:
    shift = shifts(scale)
    high = (residual + np.where(shift > 0, 1 << np.maximum(shift - 1, 0), 0)) >> shift
    symbol = np.where(np.abs(high) > 127, density.ESCAPE & 255, high & 255)
    return prices[np.maximum(scale - 8 * shift, 0), np.where(shift > 0, 0, phase), symbol] + shift


def shifts(scale: np.ndarray) -> np.ndarray:
    """Low bits that go raw, for scale indices beyond the last table: there a bin of 2^shift is nearly flat."""
    return np.maximum((scale - density.SCALES + 8) >> 3, 0)


def fit(codes: np.ndarray, kernel: tuple[int, ...]) -> Product:
    """The model of codes [rows, channels, positions] with the shortest total message, by coordinate descent."""
    sample = _thin(codes, _SAMPLE)
    best = _fit_scales(sample, kernel, None)
    if codes.shape[2] > 1:
        taps = _fit_taps(sample, kernel)
        if taps.any():
            best = min(best, _fit_scales(sample, kernel, taps), key=lambda found: found[0])
    model = best[1]
    if sample is codes or sample.shape == codes.shape:
        return model
    return _refine(codes, kernel, model)


def _thin(codes: np.ndarray, entries: int) -> np.ndarray:
    """Every n-th row and m-th channel, so that about `entries` are left and both axes keep their proportions."""
    rows, channels, positions = codes.shape
    ratio = codes.size / entries
    if ratio <= 1:
        return codes
    keep_rows = max(min(rows, 64), int(rows / ratio**0.5))
    keep_channels = max(1, min(channels, entries // (keep_rows * positions)))
    return codes[:: -(-rows // keep_rows), :: -(-channels // keep_channels)]


def _refine(codes: np.ndarray, kernel: tuple[int, ...], model: Product) -> Product:
    """Factors for all rows and channels of a large matrix: each axis sees a thinned view of the other."""
    rows, channels, positions = codes.shape
    wide = codes[:, :: max(1, channels * positions // 128)]
    tall = codes[:: max(1, rows // 128)]
    bits = {name: getattr(model, name) is not None for name in ("rows", "channels")}
    model = replace(model, rows=None, channels=None)
    for name, view in (("rows", wide), ("channels", tall)):
        if bits[name]:
            start = replace(model, **{name: np.zeros(codes.shape[0 if name == "rows" else 1], np.int64)})
            seen = replace(start, channels=None) if name == "rows" else replace(start, rows=None)
            model = replace(model, **{name: getattr(_descend(view, kernel, seen, (name,), rounds=5), name)})
    for name in ("rows", "channels"):
        values = getattr(model, name)
        if values is not None:
            shift = integers.center_of(values)
            model = replace(model, **{name: values - shift})
    sample = _thin(codes, _SAMPLE)
    steps = tuple(-(-n // m) for n, m in zip(codes.shape[:2], sample.shape[:2], strict=True))
    thin = replace(
        model,
        rows=None if model.rows is None else model.rows[:: steps[0]],
        channels=None if model.channels is None else model.channels[:: steps[1]],
    )
    return replace(model, base=_best_base(sample, kernel, thin))


def _best_base(codes: np.ndarray, kernel: tuple[int, ...], model: Product) -> int:
    residual, phases = residuals(codes, kernel, model.taps)
    deltas = np.arange(-12, 13)
    bits = axis_bits(residual, phases, model.factors(*codes.shape[:2]), _prices(model.shape), deltas, 2).sum(1)
    return model.base + int(deltas[np.argmin(bits)])


def _fit_scales(codes: np.ndarray, kernel: tuple[int, ...], taps: np.ndarray | None) -> tuple[float, Product]:
    """The best of four models: with and without row factors, with and without channel factors."""
    rows, channels, positions = codes.shape
    residual, phases = residuals(codes, kernel, taps)
    found = []
    for with_rows, with_channels in ((rows > 1, channels > 1), (False, channels > 1), (rows > 1, False), (False, False)):
        axes = tuple(n for n, on in (("rows", with_rows), ("channels", with_channels), ("positions", positions > 1)) if on)
        start = _first_guess(residual, axes)
        model = replace(start, taps=taps)
        model = _best_shape(residual, phases, model)
        model = _descend_on(residual, phases, model, axes, rounds=2)
        model = _best_shape(residual, phases, model)
        bits = axis_bits(residual, phases, model.factors(rows, channels), _prices(model.shape), np.zeros(1), 2).sum()
        found.append((float(bits) + side_bits(model), model))
    return min(found, key=lambda pair: pair[0])


def total_bits(codes: np.ndarray, kernel: tuple[int, ...], model: Product) -> float:
    """Ideal code length of codes [rows, channels, positions] under the model, without its own integers."""
    rows, channels, positions = model.factors(*codes.shape[:2])
    step = max(1, _SAMPLE * 4 // max(1, codes.shape[1] * codes.shape[2]))
    bits = 0.0
    for start in range(0, len(codes), step):
        residual, phases = residuals(codes[start : start + step], kernel, model.taps)
        factors = (rows[start : start + step], channels, positions)
        bits += float(axis_bits(residual, phases, factors, _prices(model.shape), np.zeros(1), 2).sum())
    return bits


def side_bits(model: Product) -> float:
    """About how many bits the model's own integers take."""
    vectors = (model.rows, model.channels, model.positions, model.taps)
    return 32.0 + sum(16 + _rice(v)[0] for v in vectors if v is not None and len(v) > 1)


def _rice(values: np.ndarray) -> tuple[int, int, int]:
    """Bits, center and parameter of a Rice coded vector."""
    middle = integers.center_of(values)
    folded = integers.zigzag(values - middle)
    k = min(range(6), key=lambda j: integers.rice_bits(folded, j))
    return integers.rice_bits(folded, k), middle, k


def _first_guess(residual: np.ndarray, axes: tuple[str, ...]) -> Product:
    """Factors from mean magnitudes: a few rounds of scaling, in the logarithmic domain."""
    size = np.abs(residual).astype(np.float32) + np.float32(0.02)
    logs = {name: np.zeros(n) for name, n in zip(("rows", "channels", "positions"), residual.shape, strict=True)}
    for _ in range(3 if axes else 0):
        for axis, name in enumerate(("rows", "channels", "positions")):
            if name in axes:
                scale = np.exp2(logs["rows"])[:, None, None] * np.exp2(logs["channels"])[None, :, None]
                relative = size / (scale * np.exp2(logs["positions"])).astype(np.float32)
                mean = relative.mean(tuple(i for i in range(3) if i != axis), dtype=np.float64)
                logs[name] = logs[name] + np.log2(mean / mean.mean())
    scale = np.exp2(logs["rows"])[:, None, None] * np.exp2(logs["channels"])[None, :, None] * np.exp2(logs["positions"])
    spread = np.sqrt(np.mean((residual / scale) ** 2) + 1e-4)
    return Product(
        shape=3,
        base=int(np.clip(np.rint(8 * np.log2(spread)) + density.SCALE_ZERO, 0, 255)),
        rows=np.rint(4 * logs["rows"]).astype(np.int64) if "rows" in axes else None,
        channels=np.rint(4 * logs["channels"]).astype(np.int64) if "channels" in axes else None,
        positions=np.rint(8 * logs["positions"]).astype(np.int64),
        taps=None,
    )


def _best_shape(residual: np.ndarray, phases: np.ndarray, model: Product) -> Product:
    """The shape of the family, and the base scale with it, that code these residuals in the fewest bits."""
    factors = model.factors(*residual.shape[:2])
    deltas = np.array([-4, -2, -1, 0, 1, 2, 4])
    found = []
    for shape in range(len(density.SHAPES)):
        bits = axis_bits(residual, phases, factors, _prices(shape), deltas, 2).sum(1)
        found.append((float(bits.min()), shape, int(deltas[np.argmin(bits)])))
    _, shape, delta = min(found)
    return replace(model, shape=shape, base=int(np.clip(model.base + delta, 0, 255)))


def _descend(codes: np.ndarray, kernel: tuple[int, ...], model: Product, axes: tuple[str, ...], rounds: int) -> Product:
    residual, phases = residuals(codes, kernel, model.taps)
    return _descend_on(residual, phases, model, axes, rounds)


def _descend_on(residual: np.ndarray, phases: np.ndarray, model: Product, axes: tuple[str, ...], rounds: int) -> Product:
    """Move every factor by the step that saves most, its own bits included, axis by axis."""
    moves = np.array([-2, -1, 0, 1, 2])
    for _ in range(rounds):
        for axis, name in enumerate(("rows", "channels", "positions")):
            if name not in axes:
                continue
            unit = 1 if name == "positions" else 2
            factors = model.factors(*residual.shape[:2])
            bits = axis_bits(residual, phases, factors, _prices(model.shape), moves * unit, axis)
            values = getattr(model, name)
            _, middle, k = _rice(values)
            own = (integers.zigzag(values + moves[:, None] - middle) >> k) + 1 + k
            model = replace(model, **{name: values + moves[np.argmin(bits + own, axis=0)]})
    return model


def _fit_taps(codes: np.ndarray, kernel: tuple[int, ...]) -> np.ndarray:
    """Least-squares weights of the neighbors (int64, sixteenths), every kernel first scaled to its row and channel."""
    size = np.abs(codes).astype(np.float32) + np.float32(0.02)
    rows, channels = size.mean((1, 2)), size.mean((0, 2))
    scaled = codes / np.sqrt(rows[:, None, None] * channels[None, :, None])
    flat = scaled.reshape(-1, codes.shape[2]).astype(np.float64)
    moment = flat.T @ flat
    moment += np.eye(len(moment)) * (1e-3 * np.trace(moment) / len(moment) + 1e-12)
    taps = []
    for p, near in enumerate(neighbors(kernel)):
        if p:
            taps.append(np.linalg.solve(moment[np.ix_(near, near)], moment[near, p]))
    return np.clip(np.rint(TAP_UNIT * np.concatenate(taps)), -127, 127).astype(np.int64)
