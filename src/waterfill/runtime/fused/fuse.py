"""Lets convolutions of 8-bit inputs hand integers to one another, where nothing else needs the floats between them."""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from waterfill.errors import BadInput
from waterfill.runtime.fused.integers import IntegerConvolution, Reading, added, at_least, largest_of, takes
from waterfill.runtime.fused.network import FusedNetwork, traced
from waterfill.runtime.fused.plan import CATS
from waterfill.runtime.fused.program import gather
from waterfill.runtime.int8.loss import LOSS

CONVOLUTION, RELU, POOL, NOTHING, CAT = "convolution", "relu", "pool", "nothing", "cat"
_RELUS = (nn.ReLU, torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_")
_POOLS = (nn.MaxPool2d, F.max_pool2d, torch.max_pool2d)
_NOTHINGS = (nn.Identity, nn.Dropout, nn.Dropout2d)
_UNKNOWN = Reading(torch.empty(0, dtype=torch.float32, device="cpu"), 0)
_ADDS = (operator.add, operator.iadd, torch.add)


def fuse(model: nn.Module) -> fx.GraphModule:
    """A network in which convolutions of 8-bit inputs hand 8-bit integers to one another.

    Where the outputs of such a convolution go to others of them only, through relu, max pooling, concatenation of
    channels and dropout, they are rounded once by the convolution itself, as the next one reads them: no floats are
    written, rounded and read again, and relu costs nothing. Everything else stays as it is. A relu behind a convolution
    that gives floats is part of it.

    Args:
        model: that `quantize_activations` gave, in evaluation mode; it stays as it is, and shares its tensors. Its
            `forward` must be one that `torch.fx` can trace: no branches that depend on values.

    Returns:
        A module of the same outputs, but for integers that lie halfway between two (they may differ by one), and for
        the defaults of optional arguments, which are the only values that these may have. It shares layers with the
        network. It runs on a CPU, as it is: it cannot be compiled, exported or saved, and is made anew instead.

    Raises:
        BadInput: a network that cannot be traced, or without two such convolutions behind one another. When the module
            is called: inputs that are NaN.

    Example:
        >>> net = runtime.quantize_activations(waterfill.pack("net.wf", Net()), inputs.split(32))
        >>> quick = runtime.fuse(net)
    """
    if isinstance(model, FusedNetwork):
        raise BadInput("the network is fused already")
    if any(module.training for module in model.modules()):
        raise BadInput("a network in training mode: 8-bit integers are for one that is deployed; call eval()")
    made = FusedNetwork(model, traced(model), type(model).__name__)
    _Fusion.of(made).run()
    made.delete_all_unused_submodules()
    if hasattr(model, LOSS):
        setattr(made, LOSS, getattr(model, LOSS))  # by which nobody rounds its inputs a second time
    return made.eval()


@dataclass
class _Fusion:
    """A graph on its way. kinds: of its nodes that integers may pass. readings: of those that give integers."""

    model: fx.GraphModule
    kinds: dict[fx.Node, str]
    widths: dict[fx.Node, int] = field(default_factory=dict)
    norms: dict[fx.Node, nn.BatchNorm2d] = field(default_factory=dict)
    readings: dict[fx.Node, Reading] = field(default_factory=dict)

    @classmethod
    def of(cls, model: fx.GraphModule) -> "_Fusion":
        found = {node: kind for node in model.graph.nodes if (kind := _kind(node, model))}
        return cls(model, found)

    def run(self) -> None:
        """Rewrite the graph. Raises BadInput where there is nothing to be gained."""
        self._take_norms()
        self._find_widths()
        while self._agree():
            pass
        if not self.readings:
            raise BadInput(f"nothing is to be gained, and the network stays as it is: {self._why_nothing()}")
        for node in list(self.model.graph.nodes):
            if self.kinds.get(node) == CONVOLUTION:
                self._replace_convolution(node)
            elif node in self.readings:
                self._replace(node)
        self._add_in_place()
        gather(self.model)
        self.model.graph.lint()
        self.model.recompile()

    def _why_nothing(self) -> str:
        """Why no convolution gives integers."""
        first = next((node for node, kind in self.kinds.items() if kind == CONVOLUTION), None)
        if first is None:
            return "it has no convolution of 8-bit inputs; call `quantize_activations` before, whose `table` says why"
        readers = ", ".join(str(user.target) for user in first.users if user.op != "output") or "the output"
        return (
            f"no convolution of 8-bit inputs hands its outputs to others alone; those of {first.target} go to {readers}"
        )

    def _take_norms(self) -> None:
        """Let batch norms be part of the convolutions before them."""
        for node in [node for node, kind in self.kinds.items() if kind == CONVOLUTION]:
            after = list(node.users)
            norm = self._layer(after[0]) if len(after) == 1 and after[0].op == "call_module" else None
            if type(norm) is nn.BatchNorm2d and norm.running_mean is not None and norm.running_var is not None:
                self.norms[node] = norm
                after[0].replace_all_uses_with(node)
                self.model.graph.erase_node(after[0])

    def _layer(self, node: fx.Node) -> Any:
        return self.model.get_submodule(str(node.target))

    def _find_widths(self) -> None:
        """The channels of what may be integers; what has none known is not."""
        for node, kind in list(self.kinds.items()):
            if kind == CONVOLUTION:
                self.widths[node] = self._layer(node).out_channels
            elif all(source in self.widths for source in _sources(node)):
                self.widths[node] = sum(self.widths[source] for source in _sources(node))
            else:
                del self.kinds[node]
        self.readings = dict.fromkeys(self.widths, _UNKNOWN)  # all of them, until one cannot

    def _agree(self) -> bool:
        """Find how each node is read; True where some had to be given up, so that others may have to be too."""
        before = len(self.readings)
        for node in reversed(self.model.graph.nodes):
            if node not in self.readings:
                continue
            wanted = [reading for user in node.users for reading in self._wanted(node, user)]
            alike = wanted and all(each is not None and each.same(wanted[0]) for each in wanted if wanted[0])
            if alike and wanted[0] is not None:
                self.readings[node] = wanted[0]
            else:
                del self.readings[node]
        for node in list(self.readings):
            if self.kinds[node] != CONVOLUTION and not all(source in self.readings for source in _sources(node)):
                del self.readings[node]
        return len(self.readings) < before

    def _wanted(self, node: fx.Node, user: fx.Node) -> Iterator[Reading | None]:
        """How a user reads a node, once for each place where it does; None for floats."""
        if self.kinds.get(user) == CONVOLUTION:
            yield takes(self._layer(user))
        elif user not in self.readings:
            yield None
        elif self.kinds[user] == CAT:
            first = 0
            for source in _sources(user):
                last = first + self.widths[source]
                if source is node:
                    yield self.readings[user].channels(first, last)
                first = last
        else:
            yield self.readings[user]

    def _replace_convolution(self, node: fx.Node) -> None:
        """Put a convolution in its place that takes and gives what it is to, relu included."""
        (source,) = _sources(node)
        given, reading = source in self.readings, self.readings.get(node)
        users = list(node.users)
        relu = len(users) == 1 and _is(users[0], self.model, _RELUS)
        norm = self.norms.get(node)
        if not (given or relu or norm is not None or reading is not None):
            return
        name = f"{str(node.target).replace('.', '_')}_of_integers"
        while hasattr(self.model, name):
            name += "_"
        self.model.add_submodule(name, IntegerConvolution(self._layer(node), norm, (given, reading), relu).eval())
        node.target, node.args, node.kwargs = name, (source,), {}
        if relu:
            self.readings.pop(users[0], None)
            self.kinds.pop(users[0], None)
            users[0].replace_all_uses_with(node)
            self.model.graph.erase_node(users[0])
            if reading is not None:
                self.readings[node] = reading

    def _add_in_place(self) -> None:
        """Let what is added to floats of a convolution that nothing else reads be added in their place."""
        for node in list(self.model.graph.nodes):
            if node.op != "call_function" or node.target not in _ADDS or len(node.args) != 2 or node.kwargs:
                continue
            first, second = node.args
            if node.target is not operator.iadd and not self._is_fresh(first):
                first, second = second, first
            if not self._is_fresh(first) or not isinstance(second, fx.Node) or second is first:
                continue
            users = list(node.users)
            relu = len(users) == 1 and _is(users[0], self.model, _RELUS)
            node.target, node.args = added, (first, second, relu)
            if relu:
                users[0].replace_all_uses_with(node)
                self.model.graph.erase_node(users[0])

    def _is_fresh(self, node: Any) -> bool:
        """Whether a node is floats that a convolution has just made, for one reader."""
        if not isinstance(node, fx.Node):
            return False
        layer = self._layer(node) if node.op == "call_module" else None
        return isinstance(layer, IntegerConvolution) and layer.zero is None and len(node.users) == 1

    def _replace(self, node: fx.Node) -> None:
        """Let what lies between convolutions work on integers."""
        kind, reading = self.kinds[node], self.readings[node]
        if kind == CAT:
            return
        (source,) = _sources(node)
        if kind == NOTHING or (kind == RELU and reading.zero == 0):
            node.replace_all_uses_with(source)
            self.model.graph.erase_node(node)
            return
        run: Callable[..., Any] = at_least if kind == RELU else largest_of
        how = (reading.zero,) if kind == RELU else _pooling(node, self.model)
        assert how is not None  # else it were none of the kinds
        node.op, node.target, node.args, node.kwargs = "call_function", run, (source, *how), {}


def _kind(node: fx.Node, model: fx.GraphModule) -> str:
    """What a node is to integers, or ""."""
    if node.op == "call_module" and takes(model.get_submodule(str(node.target))) is not None:
        return CONVOLUTION if len(node.args) == 1 and not node.kwargs else ""
    if _is(node, model, _RELUS):
        return RELU
    if _is(node, model, _POOLS):
        return POOL if _pooling(node, model) is not None else ""
    if _is(node, model, _NOTHINGS) or (node.target is F.dropout and node.kwargs.get("training") is False):
        return NOTHING
    if node.op == "call_function" and node.target in CATS:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        pieces = node.args[0] if node.args else node.kwargs.get("tensors")
        whole = isinstance(pieces, list | tuple) and all(isinstance(piece, fx.Node) for piece in pieces)
        return CAT if dim in (1, -3) and whole else ""
    return ""


def _is(node: fx.Node, model: fx.GraphModule, kinds: tuple[Any, ...]) -> bool:
    """Whether a node calls one of these functions, methods or classes of modules."""
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))) in kinds
    return node.op in ("call_function", "call_method") and node.target in kinds


def _sources(node: fx.Node) -> list[fx.Node]:
    """What a node reads; the pieces of a concatenation in order."""
    pieces = node.args[0] if node.args else node.kwargs.get("tensors", node.kwargs.get("input"))
    return [piece for piece in (pieces if isinstance(pieces, list | tuple) else [pieces]) if isinstance(piece, fx.Node)]


def _pooling(node: fx.Node, model: fx.GraphModule) -> tuple[list[int], list[int], list[int], bool] | None:
    """Size, stride and padding of a max pool, and whether its ceiling counts; None for what integers do not have."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    defaults: dict[str, Any] = {
        "stride": None,
        "padding": 0,
        "dilation": 1,
        "ceil_mode": False,
        "return_indices": False,
    }
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        own = {name: getattr(module, name) for name in names}
    else:
        own = defaults | dict(zip(names, node.args[1:], strict=False))
        own |= {name: value for name, value in node.kwargs.items() if name in names}
    size, padding, dilation = (_pair(own.get(name)) for name in ("kernel_size", "padding", "dilation"))
    stride = _pair(own["stride"]) if own["stride"] else size
    if own["return_indices"] or dilation != [1, 1] or None in (size, stride, padding):
        return None
    assert size is not None and stride is not None and padding is not None  # as just seen
    return size, stride, padding, bool(own["ceil_mode"])


def _pair(value: Any) -> list[int] | None:
    """Two whole numbers from one or two; None for anything else."""
    several = [value] * 2 if not isinstance(value, list | tuple) else list(value)
    several = several * 2 if len(several) == 1 else several
    try:
        return [operator.index(each) for each in several] if len(several) == 2 else None
    except TypeError:
        return None
