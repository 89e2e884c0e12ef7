"""A graph of ONNX that is added to: constants and nodes, each with a name of its own."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from waterfill.export.how import extra

MICROSOFT = "com.microsoft"
"""The domain of the operators of ONNX Runtime."""
_SMALL = 32  # bytes of constants that are held once


class Graph:
    """A model's graph and what is added to it. users: the nodes that take each value. rounds: whether products are of
    8-bit inputs."""

    def __init__(self, model: Any, rounds: bool = False) -> None:
        self.rounds = rounds
        self.onnx = extra("onnx", "an export to ONNX")
        self.model = model
        self.nodes: list[Any] = list(model.graph.node)
        self.initializers: dict[str, Any] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.users: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in _taken(node):
                self.users.setdefault(name, []).append(node)
        self._names = {name for node in self.nodes for name in (*node.input, *node.output)} | set(self.initializers)
        self._numbers = 0
        self._small: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.bytes = 0

    def name(self, base: str) -> str:
        """A name that nothing has, like `base`."""
        name = base
        while name in self._names:
            self._numbers += 1
            name = f"{base}.{self._numbers}"
        self._names.add(name)
        return name

    def constant(self, values: np.ndarray, base: str) -> str:
        """The name of an initializer, a new one but for small ones that are there; its bytes are counted in `bytes`."""
        array = np.ascontiguousarray(values).reshape(values.shape)
        key = (array.dtype.str, array.shape, array.tobytes() if array.nbytes <= _SMALL else b"")
        if array.nbytes <= _SMALL and key in self._small:
            return self._small[key]
        name = self._small[key] = self.name(base)
        self.initializers[name] = self.onnx.numpy_helper.from_array(array, name)
        self.bytes += array.nbytes
        return name

    def floats(self, values: np.ndarray, base: str) -> str:
        """Float32 values, held in float16 where that loses nothing: ONNX Runtime widens them as it loads."""
        wide = np.asarray(values, np.float32)
        with np.errstate(over="ignore"):
            narrow = wide.astype(np.float16)
        if wide.size > 1 and np.array_equal(narrow.astype(np.float32), wide):
            return self.node("Cast", [self.constant(narrow, f"{base}.half")], base, to=self.onnx.TensorProto.FLOAT)
        return self.constant(wide, base)

    def node(self, kind: str, inputs: Sequence[str], base: str, domain: str = "", **attributes: Any) -> str:
        """The name of the output of a new node."""
        name = self.name(base)
        made = self.onnx.helper.make_node(kind, list(inputs), [name], domain=domain, **attributes)
        self.nodes.append(made)
        if domain:
            self.imports(domain)
        return name

    def imports(self, domain: str) -> None:
        """Say that nodes are of a domain."""
        if all(each.domain != domain for each in self.model.opset_import):
            self.model.opset_import.append(self.onnx.helper.make_opsetid(domain, 1))

    def give(self, made: str, name: str) -> None:
        """Name the output of the newest node as an older one was, which it stands for from now on."""
        if self.nodes[-1].output[0] != made:
            raise AssertionError(f"{made!r} is not the output of the newest node")
        self.nodes[-1].output[0] = name

    def replace(self, node: Any, made: str) -> None:
        """Put the output of the newest node in the place of that of a node."""
        self.nodes = [each for each in self.nodes if each is not node]
        self.give(made, node.output[0])

    def finish(self) -> Any:
        """The model, its nodes in an order in which they can run, without any that nothing takes."""
        graph = self.model.graph
        made = {name: node for node in self.nodes for name in node.output}
        order: list[Any] = []
        begun: set[int] = set()
        stack = [(made[out.name], False) for out in reversed(graph.output) if out.name in made]
        while stack:
            node, ready = stack.pop()
            if ready:
                order.append(node)
            elif id(node) not in begun:
                begun.add(id(node))
                stack.append((node, True))
                stack.extend((made[name], False) for name in _taken(node) if name in made)
        used = {name for node in order for name in _taken(node)} | {out.name for out in graph.output}
        kept = [tensor for name, tensor in self.initializers.items() if name in used]
        copies = [type(node).FromString(node.SerializeToString()) for node in order]
        _shorten(copies, {out.name for out in graph.output})
        tensors = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
        for field, values in ((graph.node, copies), (graph.initializer, tensors), (graph.value_info, [])):
            del field[:]
            field.extend(values)
        return self.model


def _shorten(nodes: list[Any], outputs: set[str]) -> None:
    """Give what nodes hand to one another short names, and take remarks away: in small networks they are most of the
    bytes. Where nodes hold graphs, which take values by name too, all names stay."""
    if any(attribute.g.node or attribute.graphs for node in nodes for attribute in node.attribute):
        return
    names = [name for node in nodes for name in node.output if name and name not in outputs]
    short = {name: f"_{number:x}" for number, name in enumerate(names)}
    for node in nodes:
        for field in (node.input, node.output):
            field[:] = [short.get(name, name) for name in field]
        for remark in ("name", "doc_string", "metadata_props"):
            node.ClearField(remark)


def _taken(node: Any) -> Iterator[str]:
    """The values that a node takes, those of the graphs inside of it too."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _taken(inner)
