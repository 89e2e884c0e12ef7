"""What a program of int8 convolutions does for inputs of one shape: its steps, and where values lie in its memory."""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from waterfill.coding import native
from waterfill.runtime.fused.integers import IntegerConvolution, added, largest_of, places_of

CATS = (torch.cat, torch.concat, torch.concatenate)
_ALIGNED = 64  # bytes
Shape = tuple[int, int, int]
"""Channels, height and width."""


@dataclass(frozen=True)
class Plan:
    """A program for inputs of some shapes. outputs: the shapes of what it gives. held: bytes of its memory.
    multiplications: with weights, for one input."""

    program: Any
    outputs: list[Shape]
    held: int
    multiplications: int

    @classmethod
    def of(cls, plain: fx.GraphModule, shapes: Sequence[Shape], isa: str = "") -> "Plan | None":
        """That of a graph that `run_of` found; None where shapes do not fit one another."""
        return _Planning(plain).plan(shapes, isa)


@dataclass(frozen=True)
class Shortcut:
    """Every so many rows and columns of floats, and channels of zeros before and behind."""

    steps: tuple[int, int] = (1, 1)
    before: int = 0
    behind: int = 0


def shortcut_of(node: fx.Node) -> Shortcut | None:
    """What a node does to floats, as in residual networks whose shortcuts have no weights; None for others."""
    args: tuple[Any, ...] = node.args
    if node.target is operator.getitem:
        found = args[1]
        if not isinstance(found, tuple) or len(found) != 4 or not all(isinstance(each, slice) for each in found):
            return None
        whole = all(each.start in (None, 0) and each.stop is None for each in found)
        steps: Any = tuple(1 if each.step is None else each.step for each in found)
        plain = all(isinstance(step, int) and step > 0 for step in steps) and steps[:2] == (1, 1)
        return Shortcut(steps[2:]) if whole and plain else None
    if node.target is not F.pad or len(args) < 2:
        return None
    given: dict[str, Any] = dict(zip(("sizes", "mode", "value"), args[1:], strict=False)) | node.kwargs
    sizes = given["sizes"]
    zeros = given.get("mode", "constant") == "constant" and given.get("value") in (None, 0)
    plain = isinstance(sizes, list | tuple) and all(isinstance(n, int) and n >= 0 for n in sizes)
    if not (plain and zeros and len(sizes) == 6) or any(sizes[:4]):
        return None
    return Shortcut(before=sizes[4], behind=sizes[5])


def read_by(node: fx.Node) -> list[fx.Node]:
    """The values that a step reads, in order."""
    return list(_nodes(node.args)) or list(_nodes(node.kwargs.values()))


@dataclass
class _Value:
    """What a step gives. base: the value that it is a part of. channel: its first one there. border: pixels around it.
    where: as in `native/program/program.h`."""

    shape: Shape
    floats: bool
    base: "_Value | None" = None
    channel: int = 0
    border: int = 0
    where: int = 0
    number: int = 0

    @property
    def whole(self) -> "_Value":
        return self if self.base is None else self.base.whole

    @property
    def first(self) -> int:
        """The channel of the whole value that it begins with."""
        return self.channel + (0 if self.base is None else self.base.first)

    @property
    def bytes(self) -> int:
        channels, height, width = self.shape
        return (4 if self.floats else 1) * channels * (height + 2 * self.border) * (width + 2 * self.border)


@dataclass
class _Step:
    """sources, to: the values that it reads and gives. add: puts it into a program."""

    sources: list[_Value]
    to: _Value
    add: Any


@dataclass
class _Planning:
    """values: of the nodes. every: of these and of what is rounded. steps: one after the other. multiplications: of
    these."""

    plain: fx.GraphModule
    values: dict[fx.Node, _Value] = field(default_factory=dict)
    every: list[_Value] = field(default_factory=list)
    steps: list[_Step] = field(default_factory=list)
    multiplications: int = 0

    def plan(self, shapes: Sequence[Shape], isa: str) -> Plan | None:
        nodes = list(self.plain.graph.nodes)
        inputs = [node for node in nodes if node.op == "placeholder"]
        outputs: list[Any] = list(nodes[-1].args[0])
        for node, shape in zip(inputs, shapes, strict=True):
            self.values[node] = self._value(shape, floats=True)
        for node in nodes[len(inputs) : -1]:
            if not self._add(node):
                return None
        for number, node in enumerate([*inputs, *outputs]):
            self.values[node].where = -1 - number
        self._surround()
        held = self._place()
        assert native.core is not None  # the caller has looked
        program = native.core.Program([_sizes(value) for value in self.every], held, isa)
        for step in self.steps:
            step.add(program, *(source.number for source in step.sources), step.to.number)
        return Plan(program, [self.values[node].shape for node in outputs], held, self.multiplications)

    def _value(self, shape: Shape, *, floats: bool) -> _Value:
        made = _Value(shape, floats, number=len(self.every))
        self.every.append(made)
        return made

    def _add(self, node: fx.Node) -> bool:
        """The steps of a node; False where shapes do not fit."""
        sources = [self.values[source] for source in read_by(node)]
        channels, height, width = sources[0].shape
        args: tuple[Any, ...] = node.args
        if node.op == "call_module":
            layer: Any = self.plain.get_submodule(str(node.target))
            return self._add_convolution(node, layer, sources[0])
        if node.target in CATS:
            return self._join(node, sources)
        shortcut = shortcut_of(node)
        add: Any
        if node.target is largest_of:
            pairs, ceiling = args[1:4], bool(args[4])
            ends = zip((height, width), *pairs, strict=True)
            height, width = (places_of(n, size, step, padding, ceiling) for n, size, step, padding in ends)
            add = partial(_pool, [n for pair in pairs for n in pair], _zero(node, self.plain))
        elif node.target is added:
            add = partial(_sum, bool(args[2]))
        elif shortcut is not None:
            height, width = (-(-n // step) for n, step in zip((height, width), shortcut.steps, strict=True))
            channels += shortcut.before + shortcut.behind
            add = partial(_spread, shortcut)
        else:
            add = partial(_relu, args[1])
        floats = node.target is added or shortcut is not None
        to = self.values[node] = self._value((channels, height, width), floats=floats)
        self.steps.append(_Step(sources, to, add))
        return min(height, width) > 0 and all(source.shape == sources[0].shape for source in sources)

    def _add_convolution(self, node: fx.Node, layer: IntegerConvolution, source: _Value) -> bool:
        """A convolution; before it its inputs are rounded where they are floats."""
        geometry = layer._geometry
        outs, ins = layer.codes.shape[:2]
        padding: Any = geometry.padding
        if ins != source.shape[0]:
            return False
        if not layer.given:
            rounded = self._value(source.shape, floats=False)
            self.steps.append(_Step([source], rounded, partial(_round, layer)))
            source = rounded
        source.border = max(source.border, *padding)
        sizes = zip(source.shape[1:], geometry.kernel, geometry.stride, padding, geometry.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        to = self.values[node] = self._value((outs, height, width), floats=layer.zero is None)
        self.steps.append(_Step([source], to, partial(_convolve, layer)))
        self.multiplications += layer.codes.numel() * height * width
        return min(height, width) > 0

    def _join(self, node: fx.Node, pieces: list[_Value]) -> bool:
        """Let the pieces of a concatenation lie in it."""
        channel, places = 0, pieces[0].shape[1:]
        for piece in pieces:
            if piece.shape[1:] != places:
                return False
        whole = self.values[node] = self._value((sum(piece.shape[0] for piece in pieces), *places), floats=False)
        for piece in pieces:
            piece.base, piece.channel = whole, channel
            channel += piece.shape[0]
        return True

    def _surround(self) -> None:
        """Let the parts of a value have its border, which is the widest that one of them needs."""
        for value in self.every:
            value.whole.border = max(value.whole.border, value.border)
        for value in self.every:
            value.border = value.whole.border

    def _place(self) -> int:
        """Find a place for every value: those that are needed at the same time do not overlap. Returns all bytes."""
        life: dict[int, list[int]] = {}
        for time, step in enumerate(self.steps):
            for each in (step.to, *step.sources):
                life.setdefault(each.whole.number, [time, time])[1] = time
        taken: list[tuple[int, int, int]] = []  # begin, end, until when
        most = 0
        for number, (begin, end) in sorted(life.items(), key=lambda item: item[1][0]):
            whole = self.every[number]
            if whole.where < 0:
                continue
            taken = sorted(each for each in taken if each[2] >= begin)
            size, place = -(-whole.bytes // _ALIGNED) * _ALIGNED, 0
            for first, last, _ in taken:
                if place + size <= first:
                    break
                place = max(place, last)
            taken.append((place, place + size, end))
            whole.where, most = place, max(most, place + size)
        for value in self.every:
            value.where = value.whole.where
        return most


def _sizes(value: _Value) -> list[int]:
    channels, height, width = value.shape
    stride = value.whole.shape[0]
    return [value.where, height, width, stride, value.border, value.first, channels, int(value.floats)]


def _round(layer: IntegerConvolution, program: Any, source: int, to: int) -> None:
    program.round(source, to, layer.factors.contiguous().data_ptr(), int(layer.unit[1]))


def _convolve(layer: IntegerConvolution, program: Any, source: int, to: int) -> None:
    geometry, bias = layer._geometry, layer.bias
    codes, scales = layer.codes.contiguous(), (layer.scales * layer.unit[0]).contiguous()
    shifts: Tensor = scales.new_zeros(len(scales)) if bias is None else bias.contiguous()
    padding: Any = geometry.padding
    sizes = [len(codes), *geometry.kernel, *geometry.stride, *padding, *geometry.dilation]
    sizes += [int(layer.unit[1]), layer.zero or 0, int(layer.relu)]
    program.convolve(source, to, [codes.data_ptr(), scales.data_ptr(), shifts.data_ptr()], sizes)


def _sum(relu: bool, program: Any, first: int, second: int, to: int) -> None:
    program.add(first, second, to, relu)


def _spread(shortcut: Shortcut, program: Any, source: int, to: int) -> None:
    program.spread(source, to, list(shortcut.steps), shortcut.before)


def _pool(sizes: list[int], zero: int, program: Any, source: int, to: int) -> None:
    program.pool(source, to, sizes, zero)


def _relu(zero: int, program: Any, source: int, to: int) -> None:
    program.relu(source, to, zero)


def _zero(node: fx.Node, plain: fx.GraphModule) -> int:
    """What a convolution that reads these integers takes for nothing."""
    user = next(iter(node.users))
    layer: Any = plain.get_submodule(str(user.target)) if user.op == "call_module" else None
    return _zero(user, plain) if layer is None else int(layer.unit[1])


def _nodes(given: Any) -> Iterator[fx.Node]:
    for each in given:
        if isinstance(each, fx.Node):
            yield each
        elif isinstance(each, list | tuple):
            yield from _nodes(each)
