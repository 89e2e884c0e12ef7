"""Small integers in few bits, taken apart again by plain operators, which ONNX Runtime runs once, as it loads.

A code of 7 bits is fields of 4, 2 and 1 bits. Each kind of field has bytes of its own: field k of byte j is that of the
code k n + j, where n is the number of bytes. So any count of bits from 1 to 8 takes that many in the file.
"""

import numpy as np

from waterfill.export.onnx.graph import Graph

_FIELDS = (8, 4, 2, 1)


def fields_of(bits: int) -> list[int]:
    """The bits of the fields of a code, from the lowest on."""
    return [field for field in _FIELDS if bits & field]


def packed(codes: np.ndarray, bits: int) -> list[np.ndarray]:
    """Codes [entries] (uint8) below 2^bits, as the bytes of each field."""
    made, shift = [], 0
    for field in fields_of(bits):
        each = 8 // field
        values = codes >> shift & (1 << field) - 1
        lines = np.pad(values, (0, -len(values) % each)).reshape(each, -1)
        shifts = (field * np.arange(each, dtype=np.uint8))[:, None]
        made.append(np.bitwise_or.reduce(lines.astype(np.uint8) << shifts, axis=0).astype(np.uint8))
        shift += field
    return made


def taken_apart(graph: Graph, codes: np.ndarray, bits: int, base: str) -> str:
    """The name of the codes [entries] (uint8), held in so many bits each."""
    whole, shift = "", 0
    for field, data in zip(fields_of(bits), packed(codes, bits), strict=True):
        values = _separate(graph, data, field, base)
        if shift:
            amount = graph.constant(np.array(shift, np.uint8), f"{base}.by")
            values = graph.node("BitShift", [values, amount], f"{base}.shifted", direction="LEFT")
        whole = graph.node("BitwiseOr", [whole, values], f"{base}.fields") if whole else values
        shift += field
    if any(len(codes) % (8 // field) for field in fields_of(bits)):
        ends = [graph.constant(np.array([at], np.int64), f"{base}.end") for at in (0, len(codes))]
        whole = graph.node("Slice", [whole, *ends], f"{base}.entries")
    return whole


def _separate(graph: Graph, data: np.ndarray, field: int, base: str) -> str:
    """All fields of some bytes, one line of them after the other: a line for each place in a byte, of one operator."""
    if field == 8:
        return graph.constant(data, f"{base}.packed")
    shifts = field * np.arange(8 // field, dtype=np.uint8)[:, None]
    inputs = [graph.constant(data[None], f"{base}.packed"), graph.constant(shifts, f"{base}.places")]
    moved = graph.node("BitShift", inputs, f"{base}.moved", direction="RIGHT")
    mask = graph.constant(np.array((1 << field) - 1, np.uint8), f"{base}.mask")
    lines = graph.node("BitwiseAnd", [moved, mask], f"{base}.field")
    return graph.node("Reshape", [lines, graph.constant(np.array([-1], np.int64), f"{base}.flat")], f"{base}.lines")
