"""The hidden states of both networks before a block, and what its original weights get from them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from waterfill.compression.blocks.inputs import Stage, recorded
from waterfill.compression.blocks.source import Stretch
from waterfill.compression.steps.recorded import Recorded
from waterfill.network.blocks.call import BlockCall
from waterfill.network.blocks.chain import Chain
from waterfill.network.blocks.hidden import HiddenStates


@dataclass(frozen=True, eq=False)
class Streams:
    """The hidden states before a block, in both networks, and how it is run on them."""

    chain: Chain
    states: HiddenStates
    number: int
    calls: Sequence[BlockCall]

    def run(self, key: str, j: int, block: nn.Module) -> Tensor:
        """The hidden state after the block for a batch. key: "x" of the original, "y" of the compressed network."""
        return self.chain.run(block, self.calls[j], self.states.get(f"{key}{self.number}-{j}"))

    def keep(self, key: str, j: int, after: Tensor) -> None:
        """Keep a hidden state after the block."""
        self.states.put(f"{key}{self.number + 1}-{j}", after)

    def advance(self, key: str, j: int, block: nn.Module) -> None:
        """Run the block and keep what comes of it."""
        self.keep(key, j, self.run(key, j, block))


class OriginalInputs:
    """The inputs of the weights of an original block, by batch: kept where memory allows, else recorded stage by stage.

    first: of the first batch, with how often each weight is used. kept: whether they are kept; the hidden states after
    the block are then there too.
    """

    def __init__(self, stretch: Stretch, streams: Streams, memory: int) -> None:
        self._stretch, self._streams = stretch, streams
        self._kept: list[list[Recorded]] = []
        self.first = self._all(0)
        batches = len(streams.calls)
        size = sum({id(one.x): one.x.nbytes for one in self.first[0]}.values())
        self.kept = size * batches <= memory
        if self.kept:
            self._kept = [self.first[0], *(self._all(j)[0] for j in range(1, batches))]

    def of(self, j: int, stage: Stage) -> list[Recorded]:
        """The inputs of the weights of a stage for a batch."""
        if self.kept:
            return self._kept[j]
        run = partial(self._streams.run, "x", j, self._stretch.module)
        return recorded(self._stretch.module, self._stretch.layouts, run, stage.uses)[0]

    def _all(self, j: int) -> tuple[list[Recorded], dict[str, int]]:
        def run() -> None:
            self._streams.advance("x", j, self._stretch.module)

        return recorded(self._stretch.module, self._stretch.layouts, run)


def inputs_by_name(found: Iterable[Recorded], names: Sequence[str]) -> dict[str, list[Recorded]]:
    """Inputs of whole matrices by the names of their weights."""
    by_name: dict[str, list[Recorded]] = {}
    for one in found:
        if one.view.name in names and one.geometry is None:
            by_name.setdefault(one.view.name, []).append(one)
    return by_name
