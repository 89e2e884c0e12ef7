"""Which channels depend on which: found by a run in which some channels of a layer's outputs are NaN.

Whatever code lies between two layers, the channels that come out NaN at the next ones are those that depend on them.
There the NaN are taken away, so that each layer's own reach is seen. No table of operations is needed.

A run shows a set of channels at once. Binary numbers of channels, and their complements, take 2 log2(channels) runs
and are exact where each channel that is reached is reached by one; where not, sets are halved until they are apart.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from waterfill.channels.graph.network import (
    IN,
    OUT,
    Layer,
    Network,
    Node,
    all_outputs,
    first_tensor,
    hooks,
    main_output,
    node_of,
    run,
    size_of,
)
from waterfill.network.running.batches import each_tensor

OUTPUTS: Node = ("outputs of the network", OUT)
"""The outputs of the network, as a layer of one channel."""
Reached = dict[Node, Tensor]
"""By node, which channels are reached (bool [channels])."""
Join = Callable[[Tensor, Node, Tensor], None]
"""(channels of a producer, a node that they reach, which of its channels): these depend on each other."""


@dataclass
class Reach:
    """What the channels of one layer's outputs reach. runs: so far."""

    network: Network
    layer: Layer
    join: Join
    runs: int = 0
    _marked: Tensor = field(init=False)
    _made: bool = field(init=False)
    _reached: Reached = field(init=False)

    def find(self) -> None:
        """Report every dependency. Raises what the model raises where it does not run on NaN."""
        # other kernels of attention take NaN for what is masked, and hide it
        with sdpa_kernel(SDPBackend.MATH), hooks(self.network.model, self.network.layers, self._before, self._after):
            self._find()

    def _find(self) -> None:
        count = size_of(self.layer, OUT)
        every = torch.arange(count, dtype=torch.int64, device="cpu")
        if count == 1:
            self._join(every, self._run(every))
            return
        if self._mixed(every, [self._run(half) for half in every.chunk(2)]):
            return
        bits = (count - 1).bit_length()
        ones, zeros = ([self._run(every[(every >> bit & 1) == value]) for bit in range(bits)] for value in (1, 0))
        self._join(every[_always(ones, zeros, every)], {OUTPUTS: torch.ones(1, dtype=torch.bool, device="cpu")})
        found = list(_decoded(ones, zeros))
        if all(alone for _, _, alone in found):
            for node, sources, _ in found:
                for target in (sources >= 0).nonzero()[:, 0]:
                    self.join(sources[target : target + 1], node, target[None])
            return
        self._halve(every)

    def _halve(self, channels: Tensor) -> None:
        """Report the dependencies of some channels by halving them until they are apart."""
        halves = channels.chunk(2)
        each = [self._run(half) for half in halves]
        if self._mixed(channels, each):
            return
        for half, seen in zip(halves, each, strict=True):
            if len(half) == 1:
                self._join(half, seen)
            elif seen:
                self._halve(half)

    def _mixed(self, channels: Tensor, each: list[Reached]) -> bool:
        """Whether both halves of some channels reach the same, more than they are: so they mix, and are joined."""
        most = max((int(seen.sum()) for seen in each[0].values()), default=0)
        if not _same(*each) or not (OUTPUTS in each[0] or 2 * most > len(channels) + 1):
            return False
        self._join(channels, each[0])
        return True

    def _join(self, channels: Tensor, reached: Reached) -> None:
        for node, seen in reached.items():
            self.join(channels, node, seen.nonzero()[:, 0])

    def _run(self, channels: Tensor) -> Reached:
        """What is reached by some channels together."""
        self.runs += 1
        self._marked, self._made, self._reached = channels, False, {}
        result = run(self.network.model, self.network.sample, self.network.inputs.forward)
        # the state that a recurrent layer hands back is no output whose size anybody counts on
        outputs = [main_output(result)] if self.layer.kind.state else all_outputs(result)
        if any(bool(value.isnan().any()) for value in outputs):
            self._reached[OUTPUTS] = torch.ones(1, dtype=torch.bool, device="cpu")
        return self._reached

    def _before(self, name: str, x: Tensor) -> Tensor | None:
        """Note which channels of a layer's input are NaN, and take these away before they are mixed."""
        if not self._made or not x.is_floating_point() or not bool(x.sum().isnan()):
            return None
        layer = self.network.layers[name]
        bad = x.isnan()
        here = bad.movedim(layer.kind.input_dim(layer.module, x), 0).flatten(1).any(1).cpu()
        node = node_of(layer, IN)
        self._reached[node] = self._reached[node] | here if node in self._reached else here
        return None if layer.kind.through else torch.where(bad, torch.zeros_like(x), x)

    def _after(self, name: str, result: Any) -> Any:
        """The output with NaN in the channels that are asked for."""
        if name != self.layer.name:
            return None
        self._made = True
        return marked(result, self.layer, self._marked)


def marked(result: Any, layer: Layer, channels: Tensor) -> Any:
    """The output of a layer with NaN in some channels; of a recurrent one in its final states too."""
    count = size_of(layer, OUT)
    first = first_tensor(result)

    def change(value: Tensor) -> Tensor:
        dim = layer.kind.output_dim(layer.module, value) if value is first else value.ndim - 1
        if not value.is_floating_point() or value.shape[dim] % count:
            return value
        blocks = torch.arange(value.shape[dim] // count, dtype=torch.int64, device="cpu")[:, None]
        return value.index_fill(dim, (blocks * count + channels).reshape(-1).to(value.device), torch.nan)

    return each_tensor(result, change)


def _always(ones: list[Reached], zeros: list[Reached], every: Tensor) -> Tensor:
    """Which channels reach the outputs, as far as can be told: in every run with them, these were reached (bool)."""
    always = torch.ones(len(every), dtype=torch.bool, device="cpu")
    for bit, pair in enumerate(zip(zeros, ones, strict=True)):
        told = torch.tensor([OUTPUTS in seen for seen in pair], dtype=torch.bool, device="cpu")
        always &= told[every >> bit & 1]
    return always


def _decoded(ones: list[Reached], zeros: list[Reached]) -> Iterator[tuple[Node, Tensor, bool]]:
    """By node, for each of its channels the one that reaches it (-1: none), and whether there is no more than one."""
    for node in dict.fromkeys(node for seen in (*ones, *zeros) for node in seen if node != OUTPUTS):
        size = next(len(seen[node]) for seen in (*ones, *zeros) if node in seen)
        none = torch.zeros(size, dtype=torch.bool, device="cpu")
        one, zero = (torch.stack([seen.get(node, none) for seen in some]) for some in (ones, zeros))
        reached = (one | zero).any(0)
        weights = 1 << torch.arange(len(ones), dtype=torch.int64, device="cpu")
        sources = (one.long() * weights[:, None]).sum(0)
        yield node, torch.where(reached, sources, -1), bool((one ^ zero)[:, reached].all())


def _same(a: Reached, b: Reached) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[node], b[node]) for node in a)
