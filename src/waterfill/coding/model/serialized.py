"""The integers of a density model as bytes."""

import numpy as np

from waterfill.coding.density_tables import SHAPES
from waterfill.coding.model.density_model import MOST_SCALE, MOST_TAPS, DensityModel, neighbors
from waterfill.coding.stream import Reader, Sink

_MOST_FACTOR = 255  # of a factor or a tap, either sign


def write_model(model: DensityModel, out: Sink) -> None:
    """Write the shape, which vectors there are, the base, and the vectors."""
    vectors = (model.rows, model.channels, model.taps)
    out.uint(model.shape | sum((v is not None) << (4 + i) for i, v in enumerate(vectors)))
    out.uint(model.base)
    for vector in (*vectors, model.positions if len(model.positions) > 1 else None):
        if vector is not None:
            out.ints(vector)


def read_model(src: Reader, size: tuple[int, int, int], kernel: tuple[int, ...]) -> DensityModel:
    """The model of codes [rows, channels, positions] of this size that `write_model` wrote. Raises CorruptFile."""
    flags = src.uint(127)
    near = neighbors(kernel) if kernel else ()
    shape, lengths = flags & 15, (size[0], size[1], sum(map(len, near)))
    if shape >= len(SHAPES) or (flags >> 6 and not kernel):
        raise src.fail(f"a density model with flags {flags}")
    base = src.uint(MOST_SCALE)
    rows, channels, taps = (src.ints(n) if flags >> (4 + i) & 1 else None for i, n in enumerate(lengths))
    places = src.ints(size[2]) if kernel else np.zeros(1, dtype=np.int64)
    if any(v is not None and np.abs(v).max(initial=0) > _MOST_FACTOR for v in (rows, channels, places, taps)):
        raise src.fail("a factor or tap of the density model is out of range")
    if taps is not None and any(np.abs(t).sum() > MOST_TAPS for t in np.split(taps, np.cumsum([*map(len, near)]))):
        raise src.fail("the taps of the density model are too large")
    model = DensityModel(shape, base, rows, channels, places, taps)
    if model.extent(size[0], size[1])[1] > MOST_SCALE:
        raise src.fail("a scale of the density model is out of range")
    return model
