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
        values = _separate(graph, graph.constant(data, f"{base}.packed"), field, base)
        if shift:
            values = _shifted(graph, values, shift, "LEFT", base)
        whole = graph.node("BitwiseOr", [whole, values], f"{base}.fields") if whole else values
        shift += field
    if any(len(codes) % (8 // field) for field in fields_of(bits)):
        ends = [graph.constant(np.array([at], np.int64), f"{base}.end") for at in (0, len(codes))]
        whole = graph.node("Slice", [whole, *ends], f"{base}.entries")
    return whole


def _separate(graph: Graph, data: str, field: int, base: str) -> str:
    """All fields of some bytes, one line of them after the other."""
    if field == 8:
        return data
    mask = graph.constant(np.array((1 << field) - 1, np.uint8), f"{base}.mask")
    lines = []
    for place in range(8 // field):
        moved = _shifted(graph, data, place * field, "RIGHT", base) if place else data
        lines.append(graph.node("BitwiseAnd", [moved, mask], f"{base}.field"))
    return graph.node("Concat", lines, f"{base}.lines", axis=0)


def _shifted(graph: Graph, data: str, by: int, direction: str, base: str) -> str:
    amount = graph.constant(np.array(by, np.uint8), f"{base}.by")
    return graph.node("BitShift", [data, amount], f"{base}.shifted", direction=direction)
