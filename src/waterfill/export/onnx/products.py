"""Products with a weight, and rows of it, from its integers: the operators in the places of MatMul, Gemm and Gather."""

from dataclasses import dataclass

import numpy as np

from waterfill.export.onnx.blocks import Blocks, blocks_of, why_not
from waterfill.export.onnx.graph import MICROSOFT, Graph
from waterfill.export.onnx.int8.convolutions import codes_of, held_codes, steps_of, why_no_int8
from waterfill.export.onnx.restore import restored
from waterfill.part import Chain, Codes, Columns, Product, Sum

_BY_INT8 = 4  # the accuracy level at which inputs become integers of 8 bits
_NEEDS_INT8 = (2, 8)  # bits of codes for which the other levels are many times slower
_LITTLE = 1 << 12  # entries of a matrix for which that does not matter


def unfit(product: Product) -> str | None:
    """Why no operator multiplies from the small form of a matrix; None where one does."""
    if isinstance(product, Codes):
        return why_not(product)
    if isinstance(product, Columns):
        return unfit(product.inner)
    if isinstance(product, Sum):
        return next((why for term in product.terms if (why := unfit(term))), None)
    if isinstance(product, Chain):  # a factor that no operator holds is restored, and still a thin one
        return None
    return "no operator of ONNX Runtime multiplies from this form"


@dataclass(frozen=True)
class Products:
    """Nodes that multiply with one weight [rows, cols]. held: its blocks, made once for all of its uses."""

    graph: Graph
    base: str
    held: dict[int, tuple[str, str, str, Blocks]]

    def times(self, x: str, product: Product) -> str:
        """x [..., cols] times the transposed matrix: [..., rows]."""
        graph = self.graph
        if isinstance(product, Codes) and why_not(product) is None:
            return self._codes(x, product)
        if isinstance(product, Columns):
            kept = graph.constant(product.kept.numpy().astype(np.int32), f"{self.base}.kept")
            return self.times(graph.node("Gather", [x, kept], f"{self.base}.inputs", axis=-1), product.inner)
        if isinstance(product, Chain):
            return self.times(self.times(x, product.right), product.left)
        if isinstance(product, Sum):
            whole = self.times(x, product.terms[0])
            for term in product.terms[1:]:
                whole = graph.node("Add", [whole, self.times(x, term)], f"{self.base}.sum")
            return whole
        matrix = restored(graph, product, f"{self.base}.dense")
        return graph.node("MatMul", [x, graph.node("Transpose", [matrix], f"{self.base}.turned")], f"{self.base}.y")

    def rows(self, at: str, codes: Codes) -> str:
        """Rows of the matrix, at [...] (integers): [..., cols]."""
        graph, cols = self.graph, codes.codes.shape[1]
        data, scales, zeros, blocks = self._blocks(codes)
        flat = graph.constant(np.array([len(codes.codes), -1], np.int64), f"{self.base}.flat")
        inputs = [graph.node("Reshape", [data, flat], f"{self.base}.table"), at, scales]
        inputs += [graph.node("Reshape", [zeros, flat], f"{self.base}.points")] if zeros else []
        how = {"bits": blocks.bits, "block_size": blocks.size, "gather_axis": 0, "quantize_axis": 1}
        made = graph.node("GatherBlockQuantized", inputs, f"{self.base}.rows", MICROSOFT, **how)
        if blocks.data.shape[1] * blocks.size != cols:
            ends = [graph.constant(np.array([end], np.int64), f"{self.base}.end") for end in (0, cols, -1)]
            made = graph.node("Slice", [made, *ends], f"{self.base}.cut")
        return self._by_column(made, codes)

    def _codes(self, x: str, codes: Codes) -> str:
        if self.graph.rounds and why_no_int8(codes) is None:
            return self._rounded(x, codes)
        data, scales, zeros, blocks = self._blocks(codes)
        rows, cols = codes.codes.shape
        how = {"K": cols, "N": rows, "bits": blocks.bits, "block_size": blocks.size}
        if blocks.bits in _NEEDS_INT8 and rows * cols > _LITTLE:
            how["accuracy_level"] = _BY_INT8
        inputs = [self._by_column(x, codes), data, scales, *([zeros] if zeros else [])]
        return self.graph.node("MatMulNBits", inputs, f"{self.base}.y", MICROSOFT, **how)

    def _rounded(self, x: str, codes: Codes) -> str:
        """Products of 8-bit integers, inputs rounded as they come."""
        whole, scales = codes_of(codes)
        made, zero, _ = held_codes(self.graph, whole.T, scales, self.base)
        inputs = [x, made, self.graph.constant(steps_of(scales), f"{self.base}.scales")]
        inputs.append(self.graph.constant(np.full(scales.shape, zero), f"{self.base}.zeros"))
        return self.graph.node("DynamicQuantizeMatMul", inputs, f"{self.base}.y", MICROSOFT)

    def _by_column(self, x: str, codes: Codes) -> str:
        if codes.columns is None:
            return x
        columns = self.graph.floats(codes.columns.numpy(), f"{self.base}.columns")
        return self.graph.node("Mul", [x, columns], f"{self.base}.scaled")

    def _blocks(self, codes: Codes) -> tuple[str, str, str, Blocks]:
        if id(codes) not in self.held:
            blocks = blocks_of(codes)
            data = self.graph.constant(blocks.data, f"{self.base}.codes")
            scales = self.graph.floats(blocks.scales, f"{self.base}.scales")
            zeros = "" if blocks.zeros is None else self.graph.constant(blocks.zeros.reshape(-1), f"{self.base}.zeros")
            self.held[id(codes)] = (data, scales, zeros, blocks)
        return self.held[id(codes)]
