"""LSTM layers on 8-bit integers, whose inputs are rounded as they come: `DynamicQuantizeLSTM` of ONNX Runtime."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from waterfill.export.onnx.graph import MICROSOFT, Graph
from waterfill.export.onnx.int8.convolutions import codes_of, held_codes, steps_of, why_no_int8
from waterfill.export.onnx.int8.ranges import values_of
from waterfill.export.result import Row
from waterfill.model.entry import Entry
from waterfill.network.layout import MATRIX
from waterfill.part import Codes

_KIND, _INPUTS = "LSTM", 8
_CLOSE = 1e-5  # relative


def to_dynamic(graph: Graph, dense: Any, entries: Mapping[str, Entry], batch: Any) -> list[Row]:
    """Run LSTM layers on integers where the codes of their weights have one scale a row. A row for each weight.

    dense: the graph as it was; batch: inputs of it, with which the order of the gates in its weights is read.
    """
    nodes = [node for node in graph.nodes if node.op_type == _KIND]
    found = values_of(dense, [name for node in nodes for name in node.input[1:3]], batch) if nodes else {}
    return [row for node in nodes for row in _replaced(graph, node, entries, found)]


def _replaced(graph: Graph, node: Any, entries: Mapping[str, Entry], found: Mapping[str, np.ndarray]) -> list[Row]:
    """A layer on integers in the place of a node. No rows where it stays as it is."""
    sides = []
    for name in node.input[1:3]:
        values = found[name]
        names = [each for each in _behind(graph, name) if each in entries and entries[each].layout.role == MATRIX]
        if len(names) != len(values):
            return []
        held = [_in_order(entries[each], rows) for each, rows in zip(names, values, strict=True)]
        if any(one is None for one in held):
            return []
        sides.append((names, [one for one in held if one is not None]))
    rows, inputs = [], list[str]()
    for names, pairs in sides:
        before = graph.bytes
        codes = np.stack([codes.T for codes, _ in pairs])
        scales = np.stack([scale for _, scale in pairs])
        made, zero, bits = held_codes(graph, codes, scales[:, None], names[0])
        zeros = graph.constant(np.full(scales.shape, zero), f"{names[0]}.zeros")
        inputs += [made, graph.constant(steps_of(scales), f"{names[0]}.scales"), zeros]
        size = (graph.bytes - before) // len(names)
        rows += [Row(name, f"{bits}-bit codes, 8-bit products", size) for name in names]
    rest = [*node.input[3:], *[""] * (_INPUTS - len(node.input))]
    node.input[:] = [node.input[0], inputs[0], inputs[3], *rest, *inputs[1:3], *inputs[4:6]]
    node.op_type, node.domain = f"DynamicQuantize{_KIND}", MICROSOFT
    graph.imports(MICROSOFT)
    return rows


def _in_order(entry: Entry, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Codes and scales of a weight in the order of `rows` [4 hidden, inputs], in which an operator has its gates."""
    product = entry.parts[0].product()
    if not isinstance(product, Codes) or why_no_int8(product):
        return None
    codes, scales = codes_of(product)
    gates = np.arange(len(codes)).reshape(4, -1)[[0, 3, 1, 2]].reshape(-1)  # PyTorch's are input, forget, cell, output
    values = codes[gates] * scales[gates, None]
    same = values.shape == rows.shape and np.abs(values - rows).max(initial=0) <= _CLOSE * np.abs(rows).max(
        initial=1e-30
    )
    return (codes[gates], scales[gates]) if same else None


def _behind(graph: Graph, value: str) -> Iterator[str]:
    """The initializers that a value is made of, each once."""
    made = {name: node for node in graph.nodes for name in node.output}
    seen, stack = set[str](), [value]
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in graph.initializers:
            yield name
        elif name in made:
            stack += reversed(made[name].input)
