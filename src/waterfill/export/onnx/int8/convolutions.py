"""Convolutions of 8-bit inputs with 8-bit weights, as pairs of QuantizeLinear and DequantizeLinear around them.

ONNX Runtime makes one operator on integers of each such group. Codes of the file stay as they are: rows have a scale,
into which the norm behind a convolution is folded; in the file they take the bits that they need.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from waterfill.export.onnx.bits import taken_apart
from waterfill.export.onnx.graph import Graph
from waterfill.export.onnx.int8.ranges import Range, ranges_of
from waterfill.export.result import Row
from waterfill.model.entry import Entry
from waterfill.part import Codes, Product

_SAME = ("MaxPool", "Slice", "Pad", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
"""Operators whose outputs are some of their inputs, and keep their range."""
_OWN = ("GlobalAveragePool", "AveragePool", "Add", "Concat")
"""Operators on integers whose outputs have a range of their own."""


def why_no_int8(product: Product) -> str | None:
    """Why a convolution does not run on integers; None where it does."""
    if not isinstance(product, Codes):
        return "no codes with scales"
    if product.columns is not None or product.zeros is not None or product.scales.shape[1] > 1:
        return "codes with more than a scale for each row"
    least, most = (int(edge) for edge in product.codes.aminmax())
    return None if least >= -128 and most <= 127 else f"codes from {least} to {most}, beyond 8 bits"


@dataclass
class _Convolution:
    """A convolution, the norm and the ReLU behind it, if there are, and its weight. output: what all of them give."""

    node: Any
    norm: Any
    relu: Any
    name: str
    entry: Entry
    output: str


@dataclass
class Plan:
    """What of a graph becomes integers. tensors: the values that do, in order; same: those that have the range of
    another. why: by name of a weight, why it stays as it is."""

    convolutions: list[_Convolution] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)
    same: dict[str, str] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, entries: Mapping[str, Entry]) -> "Plan":
        """The convolutions whose weights allow it, and what lies between them. The nodes are in order."""
        plan, outputs = cls(), {out.name for out in graph.model.graph.output}
        behind: set[int] = set()

        def only(value: str, kind: str) -> Any:
            users = graph.users.get(value, [])
            alone = len(users) == 1 and users[0].op_type == kind and value not in outputs
            return users[0] if alone else None

        for node in graph.nodes:
            if id(node) in behind:
                continue
            relu, output = None, node.output[0] if node.output else ""
            if node.op_type == "Conv" and node.input[1] in entries:
                entry = entries[node.input[1]]
                if why := why_no_int8(entry.parts[0].product()):
                    plan.why[node.input[1]] = why
                    continue
                norm = only(output, "BatchNormalization")
                output = norm.output[0] if norm is not None else output
                relu = only(output, "Relu")
                output = relu.output[0] if relu is not None else output
                plan.convolutions.append(_Convolution(node, norm, relu, node.input[1], entry, output))
                plan._add(node.input[0])
            elif node.op_type in _SAME and node.input[0] in plan.tensors and output not in outputs:
                plan.same[output] = node.input[0]
            elif node.op_type in _OWN and all(value in plan.tensors for value in node.input):
                relu = only(output, "Relu")
                output = relu.output[0] if relu is not None else output
            else:
                continue
            behind.add(id(relu))
            if output not in outputs:
                plan._add(output)
        return plan

    def _add(self, value: str) -> None:
        if value not in self.tensors:
            self.tensors.append(value)


def to_int8(graph: Graph, dense: Any, entries: Mapping[str, Entry], batches: Iterable[Any]) -> tuple[list[Row], Plan]:
    """Run convolutions on integers. Returns a row for each of their weights, and for norms that are folded.

    dense: the graph as it was, which is run to find the ranges. Raises BadInput, CannotExport.
    """
    plan = Plan.of(graph, entries)
    own = [value for value in plan.tensors if value not in plan.same]
    ranges = ranges_of(dense, own, batches) if plan.convolutions else {}
    for value in plan.tensors:
        if value in plan.same:
            ranges[value] = ranges[plan.same[value]]
    rows = [row for one in plan.convolutions for row in _replaced(graph, one, ranges[one.node.input[0]])]
    for value in plan.tensors:
        _rounded(graph, value, ranges[value])
    return rows, plan


def _rounded(graph: Graph, value: str, range: Range) -> None:
    """Round a value to 8 bits for all that takes it. A ReLU before it goes where no code is below zero."""
    made = next((node for node in graph.nodes if value in node.output), None)
    if made is not None and made.op_type == "Relu" and range.zero == 0:
        before = next(node for node in graph.nodes if made.input[0] in node.output)
        if before.op_type in ("Conv", "Add") and sum(made.input[0] in node.input for node in graph.nodes) == 1:
            graph.nodes = [node for node in graph.nodes if node is not made]
            before.output[0] = value
    users = [node for node in graph.nodes if value in node.input]
    how = [
        graph.constant(np.array(range.step, np.float32), "step"),
        graph.constant(np.array(range.zero, np.uint8), "zero"),
    ]
    codes = graph.node("QuantizeLinear", [value, *how], f"{value}.codes")
    again = graph.node("DequantizeLinear", [codes, *how], f"{value}.rounded")
    for node in users:
        node.input[:] = [again if name == value else name for name in node.input]


def _replaced(graph: Graph, one: _Convolution, range: Range) -> list[Row]:
    """A convolution of integers in the place of one. Returns the rows of its weight and of the norm's tensors."""
    before, folded = graph.bytes, []
    product = one.entry.parts[0].product()
    assert isinstance(product, Codes)
    node = one.node
    bias = _values(graph, node.input[2]) if len(node.input) > 2 else None
    codes, scales = codes_of(product)
    if one.norm is not None:
        factor, shift = _affine(graph, one.norm)
        scales, bias = scales * factor, shift + (0 if bias is None else bias * factor)
        folded = [name for name in one.norm.input[1:] if name in graph.initializers]
    shape = one.entry.layout.shape
    over = scales.reshape(-1, *[1] * (len(shape) - 1))
    weight, zero, bits = held_codes(graph, codes.reshape(shape), over, one.name)
    scales = steps_of(scales)
    inputs = [node.input[0], _restored(graph, weight, scales, zero, one.name)]
    if bias is not None:
        steps = (scales.astype(np.float64) * range.step).astype(np.float32)
        whole = np.clip(np.rint(bias / steps), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        held = graph.constant(whole, f"{one.name}.bias")
        inputs.append(_restored(graph, held, steps, np.int32(0), f"{one.name}.bias"))
    node.input[:] = inputs
    if one.norm is not None:
        graph.nodes = [each for each in graph.nodes if each is not one.norm]
        node.output[0] = one.norm.output[0]
    row = Row(one.name, f"{bits}-bit codes, 8-bit products", graph.bytes - before)
    return [row, *(Row(name, f"folded into {one.name}", 0) for name in folded)]


def codes_of(product: Codes) -> tuple[np.ndarray, np.ndarray]:
    """Codes [rows, cols] and the scales of rows [rows] (float64) of what `why_no_int8` has nothing against."""
    return product.codes.numpy(), product.scales[:, 0].double().numpy()


def held_codes(graph: Graph, codes: np.ndarray, scales: np.ndarray, base: str) -> tuple[str, np.generic, int]:
    """The name of codes, held in as many bits as they need, their zero, and these bits.

    Codes of 8 bits are unsigned: processors that add products in pairs of 16 bits add those of signed ones beyond 64
    wrongly. scales: that spread over the codes. Where one is negative, codes change their signs, as operators take none
    below zero: after they were held, as there is one more code below zero than above.
    """
    low, turned = int(codes.min()), np.where(scales < 0, -1, 1).astype(np.int8)
    bits = max(1, (int(codes.max()) - low).bit_length())
    if bits == 8:
        whole = np.clip(codes.astype(np.int64) * turned, -128, 127) + 128
        return graph.constant(whole.astype(np.uint8), f"{base}.codes"), np.uint8(128), bits
    flat = taken_apart(graph, (codes.astype(np.int64) - low).reshape(-1).astype(np.uint8), bits, base)
    made = graph.node("Cast", [flat], f"{base}.narrow", to=graph.onnx.TensorProto.INT8)
    made = graph.node("Add", [made, graph.constant(np.array(low, np.int8), f"{base}.low")], f"{base}.signed")
    shape = graph.constant(np.array(codes.shape, np.int64), f"{base}.shape")
    made = graph.node("Reshape", [made, shape], f"{base}.codes")
    if (turned < 0).any():
        made = graph.node("Mul", [made, graph.constant(turned, f"{base}.signs")], f"{base}.turned")
    return made, np.int8(0), bits


def steps_of(scales: np.ndarray) -> np.ndarray:
    """Scales as operators take them: above zero, float32."""
    return np.maximum(np.abs(scales), 1e-30).astype(np.float32)


def _restored(graph: Graph, codes: str, scales: np.ndarray, zero: np.generic, base: str) -> str:
    """Codes minus their zero, times a scale for each row."""
    inputs = [codes, graph.constant(scales, f"{base}.scales")]
    inputs += [graph.constant(np.full(scales.shape, zero), f"{base}.zeros")] if zero else []
    return graph.node("DequantizeLinear", inputs, f"{base}.values", axis=0)


def _affine(graph: Graph, norm: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a batch norm multiplies with and adds, [channels] each (float64)."""
    weight, bias, mean, variance = (_values(graph, name) for name in norm.input[1:5])
    epsilon = next((each.f for each in norm.attribute if each.name == "epsilon"), 1e-5)
    factor = weight / np.sqrt(variance + epsilon)
    return factor, bias - mean * factor


def _values(graph: Graph, name: str) -> np.ndarray:
    values: np.ndarray = graph.onnx.numpy_helper.to_array(graph.initializers[_source(graph, name)]).astype(np.float64)
    return values


def _source(graph: Graph, name: str) -> str:
    """The initializer that a value is: exporters give equal tensors to several users by `Identity`."""
    while name not in graph.initializers:
        name = next(node for node in graph.nodes if name in node.output).input[0]
    return name
