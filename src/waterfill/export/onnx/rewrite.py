"""The weights of a dense graph of ONNX, each in the place of its float values by what is small in the file.

Products and look-ups of a weight become operators that multiply from its integers. Every other use gets the restored
matrix under the old name, whatever the operator is: a convolution, a recurrent layer, a norm.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from waterfill.export.onnx.graph import Graph
from waterfill.export.onnx.products import Products, unfit
from waterfill.export.onnx.restore import restored
from waterfill.export.result import Row
from waterfill.model.entry import Entry
from waterfill.network.layout import MATRIX, VECTOR
from waterfill.part import Codes, Product

_KERNEL = "integers, multiplied from"


@dataclass(frozen=True)
class Site:
    """A node that multiplies with a weight, or looks it up. make: gives the name of what stands in its place."""

    node: Any
    make: Callable[[], str]


def rewrite(graph: Graph, entries: Mapping[str, Entry]) -> list[Row]:
    """Replace the initializers of these names by small forms. Returns a row for each that is there."""
    return [_Weight(graph, name, entry).replaced() for name, entry in entries.items() if name in graph.initializers]


class _Weight:
    """One weight on its way."""

    def __init__(self, graph: Graph, name: str, entry: Entry) -> None:
        self.graph, self.name, self.entry = graph, name, entry
        matrix = entry.layout.role == MATRIX and len(entry.parts) == 1
        self.product = entry.parts[0].product() if matrix else None
        self.products = Products(graph, name, {})
        self.why = ""
        self.turned: Product | None = None

    def replaced(self) -> Row:
        """The row of the weight, after its uses were changed."""
        graph, before = self.graph, self.graph.bytes
        multiplied, left = 0, False
        for value in self._names(self.name):
            for node in graph.users.get(value, []):
                sites = self._sites(node, value)
                for site in sites or []:
                    graph.replace(site.node, site.make())
                    multiplied += 1
                left = left or (sites is None and node.op_type != "Identity")
        del graph.initializers[self.name]
        if left:
            self._restore()
        forms = [_KERNEL] if multiplied else []
        if left:
            forms.append("dense" if self.entry.layout.role == VECTOR else "restored at load")
        return Row(self.name, " and ".join(forms) or "not used", graph.bytes - before, self.why if left else "")

    def _names(self, name: str) -> list[str]:
        """The names of a value and of its copies."""
        copies = [node.output[0] for node in self.graph.users.get(name, []) if node.op_type == "Identity"]
        return [name, *(each for copy in copies for each in self._names(copy))]

    def _restore(self) -> None:
        """Define the weight under its name by what restores it."""
        graph, layout = self.graph, self.entry.layout
        matrices = [restored(graph, part.product(), f"{self.name}.{n}") for n, part in enumerate(self.entry.parts)]
        whole = matrices[0] if len(matrices) == 1 else graph.node("Concat", matrices, f"{self.name}.stack", axis=0)
        shape = graph.constant(np.array(layout.shape, np.int64), f"{self.name}.shape")
        graph.give(graph.node("Reshape", [whole, shape], f"{self.name}.restored"), self.name)

    def _sites(self, node: Any, value: str) -> list[Site] | None:
        """The nodes to replace for a use to go; None where it stays."""
        if self.product is None or list(node.input).count(value) != 1:
            return None
        place, kind = list(node.input).index(value), node.op_type
        if kind == "Transpose" and _swaps(node):
            return self._after_transpose(node, self.product)
        if kind == "MatMul" and place == 1:
            return self._if_fit(self._turned(), lambda fit: [self._site(node, node.input[0], fit)])
        if kind == "Gemm" and place == 1 and _is_plain(node):
            product = self.product if _attribute(node, "transB", 0) else self._turned()
            return self._if_fit(product, lambda fit: [self._with_bias(node, fit)])
        if kind == "Gather" and place == 0 and _attribute(node, "axis", 0) == 0:
            return self._looked_up(node, self.product)
        return None

    def _after_transpose(self, node: Any, product: Product) -> list[Site] | None:
        """The products with a transposed weight, if it has no other use."""
        after = self.graph.users.get(node.output[0], [])
        if not after or any(each.op_type != "MatMul" or each.input[1] != node.output[0] for each in after):
            return None
        return self._if_fit(product, lambda fit: [self._site(each, each.input[0], fit) for each in after])

    def _looked_up(self, node: Any, product: Product) -> list[Site] | None:
        if isinstance(product, Codes):
            return self._if_fit(product, lambda _: [Site(node, lambda: self.products.rows(node.input[1], product))])
        self.why = unfit(product) or "no operator looks rows up in this form"
        return None

    def _if_fit(self, product: Product, sites: Callable[[Product], list[Site]]) -> list[Site] | None:
        why = unfit(product)
        self.why = why or self.why
        return None if why else sites(product)

    def _turned(self) -> Product:
        if self.turned is None and self.product is not None:
            self.turned = self.product.transposed()
        return self.turned  # type: ignore[return-value]  # there is a product where a use of it was found

    def _site(self, node: Any, x: str, product: Product) -> Site:
        return Site(node, lambda: self.products.times(x, product))

    def _with_bias(self, node: Any, product: Product) -> Site:
        def make() -> str:
            made = self.products.times(node.input[0], product)
            has_bias = len(node.input) > 2 and node.input[2]
            return self.graph.node("Add", [made, node.input[2]], f"{self.name}.biased") if has_bias else made

        return Site(node, make)


def _attribute(node: Any, name: str, default: Any) -> Any:
    """An attribute of a node, an integer or a float."""
    found = next((each for each in node.attribute if each.name == name), None)
    if found is None:
        return default
    return found.i if found.type == found.INT else found.f


def _is_plain(node: Any) -> bool:
    """Whether a Gemm is x W + b, nothing scaled or transposed but the weight."""
    return not _attribute(node, "transA", 0) and _attribute(node, "alpha", 1.0) == _attribute(node, "beta", 1.0) == 1.0


def _swaps(node: Any) -> bool:
    perm = next((list(each.ints) for each in node.attribute if each.name == "perm"), [1, 0])
    return perm == [1, 0]
