"""Matrices as small constants and what restores them, in the form that OpenVINO keeps compressed in memory.

An integer constant is converted, its zero point subtracted, and the rest multiplied with scales; where that goes into a
product or a look-up, the plug-in of the processor reads the integers. Everywhere else it restores them as it compiles.
"""

from typing import Any

import numpy as np

from waterfill.export.how import extra
from waterfill.part import Codes, Columns, Levels, Product

_SMALL = 1 << 10  # values that take less than the text of one more node


class Constants:
    """Makes nodes of OpenVINO, and counts the bytes of their constants."""

    def __init__(self) -> None:
        self.library = extra("openvino", "an export to OpenVINO")
        self.op: Any = extra("openvino.opset13", "an export to OpenVINO")
        self.bytes = 0
        self._kept: list[np.ndarray] = []  # tensors of OpenVINO lie in the memory of these

    def integers(self, values: np.ndarray, kind: str) -> Any:
        """A constant of small integers: "u2", "u4", "i4", "u8" or "i8", the first ones in the lowest bits."""
        bits = int(kind[1:])
        flat = values.reshape(-1).astype(np.int16) & (1 << bits) - 1
        each = 8 // bits
        fields = np.pad(flat, (0, -len(flat) % each)).reshape(-1, each) << (bits * np.arange(each, dtype=np.int16))
        packed = np.bitwise_or.reduce(fields, axis=1).astype(np.uint8)
        self.bytes += packed.nbytes
        types = self.library.Type
        data = packed.view(np.int8) if kind == "i8" else packed
        self._kept.append(data)
        shape = self.library.Shape(list(values.shape))
        return self.op.constant(self.library.Tensor(data, shape, getattr(types, kind)))

    def floats(self, values: np.ndarray) -> Any:
        """Float32 values, held in float16 where that loses nothing."""
        wide = np.asarray(values, np.float32)
        with np.errstate(over="ignore"):
            narrow = wide.astype(np.float16)
        exact = wide.size > _SMALL and np.array_equal(narrow.astype(np.float32), wide)
        self.bytes += narrow.nbytes if exact else wide.nbytes
        held = self.op.constant(np.ascontiguousarray(narrow if exact else wide))
        return self.op.convert(held, "f32") if exact else held

    def shape(self, sizes: list[int]) -> Any:
        """A shape as a constant."""
        return self.op.constant(np.array(sizes, np.int64))


def matrix(made: Constants, product: Product, by_column: bool = True) -> Any:
    """The node of the matrix [rows, cols] (float32). by_column: whether the scales of columns are applied already.

    Sums and products of matrices are float values here: the plug-in does not compute them as it compiles.
    """
    if isinstance(product, Codes) and (kind := kind_of(product)):
        whole = _codes(made, product, kind)
        if product.columns is None or not by_column:
            return whole
        return made.op.multiply(whole, made.floats(product.columns.numpy()[None]))
    make = next((make for kind, make in _KINDS if isinstance(product, kind)), None)
    return make(made, product) if make else made.floats(product.matrix().numpy())


def _levels(made: Constants, product: Levels) -> Any:
    bits = next(bits for bits in (2, 4, 8) if 1 << bits >= len(product.values))
    places = made.op.convert(made.integers(product.places.numpy(), f"u{bits}"), "i32")
    return made.op.gather(made.floats(product.values.numpy()), places, made.op.constant(np.int32(0)))


def _columns(made: Constants, product: Columns) -> Any:
    """Columns in their places: one more column of zeros stands for all that are not kept."""
    op, inner = made.op, matrix(made, product.inner)
    place = np.full(product.cols, len(product.kept), np.int32)
    place[product.kept.numpy()] = np.arange(len(product.kept), dtype=np.int32)
    nothing = op.constant(np.zeros((product.matrix().shape[0], 1), np.float32))
    return op.gather(op.concat([inner, nothing], 1), op.constant(place), op.constant(np.int32(1)))


_KINDS: tuple[tuple[type[Product], Any], ...] = (
    (Levels, _levels),
    (Columns, _columns),
)


def kind_of(codes: Codes) -> str | None:
    """The narrowest type of integers that holds codes; None where there is none, or where groups do not fill a row."""
    if not codes.codes.numel() or (codes.scales.shape[1] > 1 and codes.codes.shape[1] % codes.group):
        return None
    edges = [int(edge) for edge in codes.codes.aminmax()]
    edges += [] if codes.zeros is None else [int(edge) for edge in codes.zeros.aminmax()]
    fits = {bits: -(1 << bits - 1) <= min(edges) and max(edges) < 1 << bits - 1 for bits in (2, 4, 8)}
    bits = next((bits for bits, fit in fits.items() if fit), None)
    if bits is None:
        return None
    return f"u{bits}" if codes.zeros is not None or bits == 2 else f"i{bits}"


def _codes(made: Constants, codes: Codes, kind: str) -> Any:
    """(code - zero) scale, a group of columns at a time where there are several."""
    rows, cols = codes.codes.shape
    groups = codes.scales.shape[1]
    shape = (rows, groups, cols // groups) if groups > 1 else (rows, cols)
    half = 1 << int(kind[1:]) - 1 if kind[0] == "u" else 0
    op = made.op
    whole = op.convert(made.integers(codes.codes.numpy().reshape(shape).astype(np.int16) + half, kind), "f32")
    column = (rows, groups, 1) if groups > 1 else (rows, 1)
    if kind[0] == "u":
        points = np.zeros((rows, groups), np.int16) if codes.zeros is None else codes.zeros.numpy().astype(np.int16)
        points = points[:1, :1].reshape([1] * len(shape)) if codes.zeros is None else points.reshape(column)
        whole = op.subtract(whole, op.convert(made.integers(points + half, kind), "f32"))
    whole = op.multiply(whole, made.floats(codes.scales.numpy().reshape(column)))
    return whole if groups == 1 else op.reshape(whole, made.shape([rows, cols]), False)
