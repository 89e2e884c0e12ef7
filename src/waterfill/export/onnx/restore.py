"""Matrices restored by plain operators from what is small in the file; ONNX Runtime does so once, as it loads."""

from typing import Any

import numpy as np
import torch

from waterfill.export.onnx.bits import taken_apart
from waterfill.export.onnx.graph import Graph
from waterfill.part import Chain, Codes, Columns, Entries, Levels, Product, Sum

_VALUE = 16  # bits of a code that is put in its place by itself, its place apart
_NARROW = 1 << 16  # entries whose places take 16 bits, not 32


def restored(graph: Graph, product: Product, base: str) -> str:
    """The name of the matrix [rows, cols] (float32), equal to `product.matrix()` up to rounding."""
    for kind, make in _KINDS:
        if isinstance(product, kind):
            name: str = make(graph, product, base)
            return name
    return graph.floats(product.matrix().numpy(), f"{base}.values")


def _codes(graph: Graph, product: Codes, base: str) -> str:
    rows, cols = product.codes.shape
    codes = product.codes.numpy().astype(np.int64)
    low, bits, far = _window(codes)
    stored = np.clip(codes - low, 0, (1 << bits) - 1).astype(np.uint8)
    flat = _integers(graph, stored.reshape(-1), bits, base)
    values = graph.node("Cast", [flat], f"{base}.codes", to=graph.onnx.TensorProto.FLOAT)
    if len(far):
        where = _places(graph, far, codes.size, f"{base}.far")
        given = graph.floats((codes.reshape(-1)[far] - low).astype(np.float32), f"{base}.codes_far")
        values = graph.node("ScatterElements", [values, where, given], f"{base}.whole")
    values = _shaped(graph, values, (rows, cols), base)
    zero = np.float32(-low) if product.zeros is None else product.zeros.float().numpy() - np.float32(low)
    values = graph.node("Sub", [values, _by_group(graph, np.asarray(zero), product, f"{base}.zeros")], f"{base}.signed")
    scales = _by_group(graph, product.scales.numpy(), product, f"{base}.scales")
    values = graph.node("Mul", [values, scales], f"{base}.scaled")
    if product.columns is None:
        return values
    columns = graph.floats(product.columns.numpy(), f"{base}.columns")
    return graph.node("Mul", [values, columns], f"{base}.by_column")


def _window(codes: np.ndarray) -> tuple[int, int, np.ndarray]:
    """The least code that is held in the bits, how many bits that are, and the places of codes beyond them [n]: the
    fewest bytes in all."""
    least, most = int(codes.min(initial=0)), int(codes.max(initial=0))
    best = (np.inf, 0, 8, np.zeros(0, np.int64))
    for bits in range(1, 9):
        low = least if most - least < 1 << bits else max(least, -(1 << bits - 1))
        beyond = np.flatnonzero((codes < low) | (codes >= low + (1 << bits)))
        size = bits * codes.size + (_VALUE + _place_bits(codes.size)) * len(beyond)
        if size < best[0]:
            best = (size, low, bits, beyond)
    return best[1], best[2], best[3]


def _place_bits(size: int) -> int:
    """Bits of the place of an entry of so many."""
    return 16 if size <= _NARROW else 32


def _places(graph: Graph, places: np.ndarray, size: int, base: str) -> str:
    """Places of entries [n] (int32)."""
    if _place_bits(size) == 16:
        held = graph.constant(places.astype(np.uint16), f"{base}.short")
        return graph.node("Cast", [held], base, to=graph.onnx.TensorProto.INT32)
    return graph.constant(places.astype(np.int32), base)


def _by_group(graph: Graph, values: np.ndarray, product: Codes, base: str) -> str:
    """Values [rows, groups], or a single one, for every column: [rows, cols]."""
    if values.ndim < 2 or values.shape[1] == 1:
        return graph.floats(values, base)
    cols = product.codes.shape[1]
    held = graph.floats(values, base)
    of = graph.constant((np.arange(cols) // product.group).astype(np.int32), f"{base}.of")
    return graph.node("Gather", [held, of], f"{base}.spread", axis=1)


def _levels(graph: Graph, product: Levels, base: str) -> str:
    bits = max(1, (len(product.values) - 1).bit_length())
    places = _integers(graph, product.places.numpy().reshape(-1), bits, base)
    wide = graph.node("Cast", [places], f"{base}.places", to=graph.onnx.TensorProto.INT32)
    flat = graph.node("Gather", [graph.floats(product.values.numpy(), f"{base}.levels"), wide], f"{base}.flat")
    return _shaped(graph, flat, tuple(product.places.shape), base)


def _chain(graph: Graph, product: Chain, base: str) -> str:
    factors = [restored(graph, side, f"{base}.{n}") for n, side in enumerate((product.left, product.right))]
    return graph.node("MatMul", factors, f"{base}.product")


def _sum(graph: Graph, product: Sum, base: str) -> str:
    whole = restored(graph, product.terms[0], f"{base}.0")
    for number, term in enumerate(product.terms[1:], 1):
        whole = graph.node("Add", [whole, restored(graph, term, f"{base}.{number}")], f"{base}.sum")
    return whole


def _entries(graph: Graph, product: Entries, base: str) -> str:
    values = product.values.numpy()
    where = np.flatnonzero(values)
    if (32 + _place_bits(values.size)) * len(where) >= 32 * values.size:
        return graph.floats(values, f"{base}.values")
    zero = graph.onnx.helper.make_tensor("zero", graph.onnx.TensorProto.FLOAT, [1], [0.0])
    size = graph.constant(np.array([values.size], np.int64), f"{base}.size")
    empty = graph.node("ConstantOfShape", [size], f"{base}.zeros", value=zero)
    places = _places(graph, where, values.size, f"{base}.where")
    given = graph.floats(values.reshape(-1)[where], f"{base}.nonzero")
    return _shaped(graph, graph.node("ScatterElements", [empty, places, given], f"{base}.flat"), values.shape, base)


def _columns(graph: Graph, product: Columns, base: str) -> str:
    """Columns in their places: one more column of zeros stands for all that are not kept."""
    inner = restored(graph, product.inner, f"{base}.kept")
    rows = product.matrix().shape[0]
    place = torch.full((product.cols,), len(product.kept), dtype=torch.int32, device="cpu")
    place[product.kept] = torch.arange(len(product.kept), dtype=torch.int32, device="cpu")
    nothing = graph.constant(np.zeros((rows, 1), np.float32), f"{base}.nothing")
    wide = graph.node("Concat", [inner, nothing], f"{base}.wide", axis=1)
    return graph.node("Gather", [wide, graph.constant(place.numpy(), f"{base}.place")], f"{base}.placed", axis=1)


def _integers(graph: Graph, codes: np.ndarray, bits: int, base: str) -> str:
    return taken_apart(graph, codes.astype(np.uint8), bits, base)


def _shaped(graph: Graph, flat: str, shape: tuple[int, ...], base: str) -> str:
    return graph.node("Reshape", [flat, graph.constant(np.array(shape, np.int64), f"{base}.shape")], f"{base}.matrix")


_KINDS: tuple[tuple[type[Product], Any], ...] = (
    (Codes, _codes),
    (Levels, _levels),
    (Entries, _entries),
    (Columns, _columns),
    (Chain, _chain),
    (Sum, _sum),
)
