"""The constants of a dense network in OpenVINO, each in the place of its float values by its small form."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from waterfill.export.openvino.constants import Constants, kind_of, matrix
from waterfill.export.result import Row
from waterfill.model.entry import Entry
from waterfill.network.layout import MATRIX, VECTOR
from waterfill.part import Chain, Codes, Columns, Product, Sum


def unfit(product: Product) -> str | None:
    """Why a matrix is not multiplied from its small form; None where it is."""
    if isinstance(product, Codes):
        return None if kind_of(product) else "codes beyond 8 bits, or groups that do not fill a row"
    if isinstance(product, Columns):
        return unfit(product.inner)
    if isinstance(product, Sum):
        return next((why for term in product.terms if (why := unfit(term))), None)
    return None if isinstance(product, Chain) else "a form that OpenVINO restores as it compiles"


@dataclass
class _Weight:
    """A weight and its dense constant. held: the node of its codes as a matrix, once there is one."""

    constant: Any
    entry: Entry
    held: list[Any] = field(default_factory=list)
    multiplied: bool = False

    @property
    def product(self) -> Product | None:
        """Its matrix, where it is one."""
        is_matrix = self.entry.layout.role == MATRIX and len(self.entry.parts) == 1
        return self.entry.parts[0].product() if is_matrix else None


def rewrite(made: Constants, model: Any, entries: Mapping[str, Entry]) -> list[Row]:
    """Replace the constants of these names; `made` has to live as long as the model. Returns a row for each."""
    found = {node.get_friendly_name(): node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"}
    weights = {name: _Weight(found[name], entry) for name, entry in entries.items() if name in found}
    sizes = {name: _multiply(made, weight) for name, weight in weights.items()}
    live = {node.get_friendly_name() for node in model.get_ordered_ops()}  # products that were replaced are not
    return [_restore(made, weight, name, sizes[name], live) for name, weight in weights.items()]


def _multiply(made: Constants, weight: _Weight) -> int:
    """Replace the products with a weight. Returns the bytes that this took."""
    before, product = made.bytes, weight.product
    if product is None or unfit(product):
        return 0
    for place, x, swapped in _products(weight.constant):
        side = product.transposed() if swapped else product
        if unfit(side) is None:
            place.replace(times(made, x, side, weight.held if side is product else []).output(0))
            weight.multiplied = True
    return made.bytes - before


def _restore(made: Constants, weight: _Weight, name: str, size: int, live: set[str]) -> Row:
    """Put what restores the matrix in the place of the constant where it has other uses.

    It is float values where a product is among these: the plug-in would take any other form for one that it multiplies
    from, and fails where it is none.
    """
    before, product = made.bytes, weight.product
    uses = [use.get_node() for use in weight.constant.output(0).get_target_inputs()]
    uses = [node for node in uses if node.get_friendly_name() in live]
    forms = ["integers, multiplied from"] if weight.multiplied else []
    if uses:
        stuck = product is not None and any(use.get_type_name() in ("MatMul", "Transpose") for use in uses)
        node = made.floats(weight.entry.tensor().float().numpy()) if stuck else _whole(made, weight.entry, weight.held)
        node.set_friendly_name(name)
        weight.constant.output(0).replace(node.output(0))
        looked_up = isinstance(product, Codes) and all(use.get_type_name() == "Gather" for use in uses)
        dense = "dense" if weight.entry.layout.role == VECTOR else "restored on compiling"
        forms.append("integers, looked up" if looked_up else "dense" if stuck else dense)
    why = unfit(product) if uses and product is not None else None
    if uses and stuck and not why:
        why = "groups across the inputs of the product"
    return Row(name, " and ".join(forms) or "not used", size + made.bytes - before, why or "")


def _products(constant: Any) -> list[tuple[Any, Any, bool]]:
    """The products with a weight as their second factor: what is replaced, x, and whether it is x W, not x W^T."""
    found = []
    for use in constant.output(0).get_target_inputs():
        node = use.get_node()
        if node.get_type_name() == "MatMul" and use.get_index() == 1 and not node.get_attributes()["transpose_a"]:
            turned = node.get_attributes()["transpose_b"]
            found.append((node.output(0), node.input_value(0), not turned))
        elif node.get_type_name() == "Transpose" and list(node.input_value(1).get_node().get_vector()) == [1, 0]:
            for after in node.output(0).get_target_inputs():
                each = after.get_node()
                plain = each.get_type_name() == "MatMul" and after.get_index() == 1
                if plain and not any(each.get_attributes()[f"transpose_{side}"] for side in "ab"):
                    found.append((each.output(0), each.input_value(0), False))
    return found


def times(made: Constants, x: Any, product: Product, held: list[Any]) -> Any:
    """The node of x [..., cols] times the transposed matrix. held: the node of the matrix of codes, once it is made."""
    op = made.op
    if isinstance(product, Codes):
        if not held:
            held.append(matrix(made, product, by_column=False))
        given = x if product.columns is None else op.multiply(x, made.floats(product.columns.numpy()))
        return op.matmul(given, held[0], False, True)
    if isinstance(product, Columns):
        kept = op.constant(product.kept.numpy().astype(np.int32))
        return times(made, op.gather(x, kept, op.constant(np.int32(-1))), product.inner, held)
    if isinstance(product, Chain):
        return times(made, times(made, x, product.right, []), product.left, [])
    if isinstance(product, Sum):
        whole = times(made, x, product.terms[0], [])
        for term in product.terms[1:]:
            whole = op.add(whole, times(made, x, term, []))
        return whole
    return op.matmul(x, matrix(made, product), False, True)


def _whole(made: Constants, entry: Entry, held: list[Any]) -> Any:
    """The node of a tensor in its own shape, of a matrix that is there already if it is the same."""
    op, shape = made.op, list(entry.layout.shape)
    if entry.layout.role == VECTOR:
        return made.floats(entry.tensor().float().numpy())
    products = [part.product() for part in entry.parts]
    if len(products) == 1 and held and isinstance(products[0], Codes) and products[0].columns is None:
        return held[0]
    matrices = [matrix(made, product) for product in products]
    whole = matrices[0] if len(matrices) == 1 else op.concat(matrices, 0)
    same = len(matrices) == 1 and list(entry.layout.matrix) == shape
    return whole if same else op.reshape(whole, made.shape(shape), False)
