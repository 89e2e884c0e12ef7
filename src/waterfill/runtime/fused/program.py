"""Convolutions of 8-bit inputs, and what lies between them, in one call: for few inputs the way from one to the next
through PyTorch takes longer than they do."""

import operator
import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from waterfill.coding import native
from waterfill.errors import BadInput
from waterfill.runtime.fused.integers import IntegerConvolution, added, at_least, largest_of
from waterfill.runtime.fused.plan import CATS, Plan, Shape, read_by, shortcut_of
from waterfill.runtime.matrix import runs_here
from waterfill.runtime.operators import check_type

_FEWEST = 2  # convolutions that are worth a program
_FEW = 8  # inputs with which oneDNN is not the faster one yet


class Program(nn.Module):
    """Steps of a fused network. plain: the same as a graph, for inputs that the program does not take."""

    def __init__(self, plain: fx.GraphModule) -> None:
        super().__init__()
        self.plain = plain
        self._plan: tuple[tuple[Shape, ...], Plan | None] | None = None

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        for x in given:
            check_type(x, x)
        batch = self._batch(given)
        plan = self._plan_for(given) if batch else None
        if plan is None or native.core is None:
            made: tuple[Tensor, ...] = self.plain(*given)
            return made
        inputs = [x.detach().permute(0, 2, 3, 1).contiguous() for x in given]
        outputs = [
            torch.empty((batch, height, width, channels), dtype=torch.float32, device="cpu")
            for channels, height, width in plan.outputs
        ]
        if plan.program.run([x.data_ptr() for x in (*inputs, *outputs)], batch, torch.get_num_threads()):
            raise BadInput("an input is NaN, which no 8-bit integer says; run the network as it was before `fuse`")
        return tuple(y.permute(0, 3, 1, 2) for y in outputs)

    def _batch(self, given: tuple[Tensor, ...]) -> int:
        """Inputs at a time, where a program may take them; or 0."""
        first = given[0]
        usual = all(
            runs_here(x) and x.dtype is torch.float32 and x.dim() == 4 and len(x) == len(first) and x.numel()
            for x in given
        )
        return len(first) if usual and len(first) <= most_at_once() else 0

    def _plan_for(self, given: tuple[Tensor, ...]) -> Plan | None:
        """That for inputs of these shapes; the last one is kept. Other threads may have inputs of others."""
        shapes: tuple[Any, ...] = tuple(tuple(x.shape[1:]) for x in given)
        known = self._plan
        if known is None or known[0] != shapes:
            self._plan = known = shapes, Plan.of(self.plain, shapes)
        return known[1]

    def multiplications(self, x: Tensor, y: Tensor) -> int:
        """Those of its convolutions, where these do not run one by one and count for themselves."""
        known = self._plan
        plan = known[1] if known is not None and self._batch((x,)) else None
        return 0 if plan is None else len(x) * plan.multiplications

    def _apply(self, fn: Any, recurse: bool = True) -> "Program":
        """Other tensors are another plan."""
        self._plan = None
        super()._apply(fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without what cannot be copied."""
        return {**self.__dict__, "_plan": None}

    @property
    def beside(self) -> int:
        """Bytes of the codes in the order of the program, and of what lies between its steps."""
        plan = None if self._plan is None else self._plan[1]
        own = sum(each.codes.numel() for each in self.modules() if isinstance(each, IntegerConvolution))
        return 0 if plan is None else plan.held + own


@cache
def most_at_once() -> int:
    """Inputs up to which a program is faster than oneDNN's convolutions one after the other, on this processor."""
    sets = [] if native.core is None else native.core.convolution_sets()
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # with which oneDNN multiplies many inputs
    if "vnni" in sets and not tiles():
        return sys.maxsize
    return _FEW if "avx2" in sets else 0


def gather(model: fx.GraphModule) -> None:
    """Put programs in the place of runs of steps, in a graph that `fuse` has rewritten."""
    run: list[fx.Node] = []
    integers: set[fx.Node] = set()
    runs = []
    for node in [*model.graph.nodes]:
        if not _joins(node, model, integers):
            runs.append(run)
            run, integers = [], set()
        if _joins(node, model, integers):
            run.append(node)
            if _gives_integers(node, model):
                integers.add(node)
    for number, steps in enumerate([*runs, run]):
        convolutions = sum(node.op == "call_module" for node in steps)
        inside = all(user in steps for node in steps if _stays(node, model) for user in node.users)
        if convolutions >= _FEWEST and inside:
            _replace(model, steps, f"program_{number}")


def _joins(node: fx.Node, model: fx.GraphModule, integers: set[fx.Node]) -> bool:
    """Whether a node is a step of the program that has given these integers so far."""
    sources = read_by(node)
    if node.op == "call_module":
        layer = model.get_submodule(str(node.target))
        able = isinstance(layer, IntegerConvolution) and layer._geometry.groups == 1 and layer._dtype == torch.float32
        return able and (sources[0] in integers) == layer.given
    if node.op == "call_function" and node.target in CATS:
        once = all(sum(user.target in CATS for user in piece.users) == 1 for piece in sources)
        return once and len(set(sources)) == len(sources) and integers.issuperset(sources)
    if node.target is added or shortcut_of(node) is not None:
        return integers.isdisjoint(sources)
    return node.target in (at_least, largest_of) and sources[0] in integers


def _stays(node: fx.Node, model: fx.GraphModule) -> bool:
    """Whether only a program may read what a node gives: integers, and what is a view of something else outside."""
    return _gives_integers(node, model) or node.target is operator.getitem


def _gives_integers(node: fx.Node, model: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return getattr(model.get_submodule(str(node.target)), "zero", None) is not None
    return node.target in (at_least, largest_of, *CATS)


def _replace(model: fx.GraphModule, steps: list[fx.Node], name: str) -> None:
    """Put a program in the place of some steps."""
    inputs = list(dict.fromkeys(source for node in steps for source in read_by(node) if source not in steps))
    outputs = [node for node in steps if any(user not in steps for user in node.users)]
    graph = fx.Graph()
    known = {source: graph.placeholder(f"x{number}") for number, source in enumerate(inputs)}
    for node in steps:
        known[node] = graph.node_copy(node, known.__getitem__)
    graph.output(tuple(known[node] for node in outputs))
    while hasattr(model, name):
        name += "_"
    model.add_submodule(name, Program(fx.GraphModule(model, graph, "Steps")).eval())
    with model.graph.inserting_after(steps[-1]):
        made = model.graph.call_module(name, tuple(inputs))
    before = made
    for number, node in enumerate(outputs):
        with model.graph.inserting_after(before):
            before = model.graph.call_function(_item, (made, number))
        node.replace_all_uses_with(before, delete_user_cb=lambda user: user not in steps)
    for node in reversed(steps):
        model.graph.erase_node(node)


def _item(values: tuple[Tensor, ...], number: int) -> Tensor:
    return values[number]
