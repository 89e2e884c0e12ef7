"""A model of a cluster that compresses a checkpoint: the pieces that are really made, on slots with measured costs.

Decisions follow the library: the same groups of weights with a barrier behind each, the same pieces. A slot takes the
largest piece that waits. No stage is over before the storage all share has given its bytes and the caller sent
its pieces. What the caller does by itself comes on top.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from waterfill.compression.allocation.to_size.search import Bracket
from waterfill.compression.allocation.to_size.spend import _groups as groups_of_weights
from waterfill.compression.engine.piece import FIT, INSPECT, MEASURE, Item
from waterfill.compression.engine.reference import Reference
from waterfill.compression.engine.remote import cost_of, groups_of, limit_of

SAMPLED_BYTES = 1 << 22  # of a large weight that a sample touches: 64 rows, in pages


@dataclass(frozen=True)
class Costs:
    """Measured seconds. Of a core: to inspect and to fit an entry, to fit a weight however small, to measure a curve at
    one price. Of the caller: for a piece sent and answered, for a weight that is opened, that is adopted, for each time
    the bytes of the file are counted, and for a byte that is written into it."""

    inspect: float
    fit: float
    fit_any: float
    measure: float
    piece: float
    opened: float
    adopted: float
    counted: float
    written: float


@dataclass(frozen=True)
class Machines:
    """count, threads: of the workers. link, storage: bytes a second, of each machine and of the shared storage.
    deaths: machines that die in the course of the work. restart: seconds until one is back."""

    count: int
    threads: int
    link: float
    storage: float
    deaths: int = 0
    restart: float = 60.0

    @property
    def slots(self) -> int:
        """Pieces at a time."""
        return self.count * self.threads

    def reading(self, pieces: int) -> float:
        """Bytes a second over its link for each of so many pieces at a time, spread over all machines."""
        return self.link * min(1.0, self.count / min(pieces, self.slots))


@dataclass(frozen=True)
class Network:
    """name, bytes an entry, and (how many, rows, columns) of its weights."""

    name: str
    width: int
    shapes: Sequence[tuple[int, int, int]]

    def items(self) -> list[Item]:
        """A weight each, as an engine is told of them."""
        sizes = [(rows, cols) for count, rows, cols in self.shapes for _ in range(count)]
        return [Item(i, Reference("", 0, str(i), "", size, 0)) for i, size in enumerate(sizes)]

    @property
    def bytes(self) -> int:
        """Of the checkpoint."""
        return self.width * sum(count * rows * cols for count, rows, cols in self.shapes)


def phases(network: Network, machines: Machines, costs: Costs, rounds: int, refits: int) -> dict[str, float]:
    """Seconds of each stage of the work. rounds: prices at which curves are measured. refits: of the largest weight."""
    items = network.items()
    sizes = np.array([item.where.entries for item in items], dtype=np.float64)
    bits = 3.0 * sizes
    bracket = Bracket(0, bits, bits - sizes)
    order = np.argsort(bracket.low + bracket.high, kind="stable")
    ordered = Bracket(0, bracket.low[order], bracket.high[order])
    chance = np.random.default_rng(0)

    def stage(do: str, chosen: Sequence[Item], entry: float, each: float, deaths: int = 0) -> float:
        limit = limit_of(sum(cost_of(do, item) for item in chosen), machines.slots)
        groups = list(groups_of(chosen, lambda item: cost_of(do, item), limit))
        read = network.width / machines.reading(len(groups))
        most = SAMPLED_BYTES / network.width if do == MEASURE else float("inf")
        pieces = [
            sum(each + entry * item.where.entries + read * min(item.where.entries, most) for item in group)
            for group in groups
        ]
        stored = network.width * sum(min(item.where.entries, most) for item in chosen) / machines.storage
        return max(makespan(pieces, machines, deaths, chance), stored, costs.piece * len(pieces))

    groups = [[items[i] for i in order[own]] for own in groups_of_weights(ordered)]
    dying = chance.multinomial(machines.deaths, [1 / len(groups)] * len(groups))
    fitted = [
        stage(FIT, group, costs.fit, costs.fit_any, int(deaths)) for group, deaths in zip(groups, dying, strict=True)
    ]
    largest, alone = float(sizes.max()), network.width / min(machines.storage, machines.reading(1))
    return {
        "open: headers, tied weights": costs.opened * len(items),
        "inspect every value": stage(INSPECT, items, costs.inspect, 0.0),
        "measure curves": rounds * stage(MEASURE, items, 0.0, costs.measure),
        "fit": sum(fitted) + costs.adopted * len(items),
        "fit the largest again": refits * largest * (costs.fit + alone),
        "count bytes": costs.counted * len(items) * (3 + refits),
        "write the file": network.bytes / network.width * 3 / 8 * costs.written,
    }


def makespan(pieces: Sequence[float], machines: Machines, deaths: int, chance: np.random.Generator) -> float:
    """Seconds until all pieces are done; the largest goes first, to the slot that is free first.

    A machine that dies has begun its pieces in vain, and is back after a while.
    """
    free = [(0.0, slot) for slot in range(machines.slots)]  # a heap already
    about = sum(pieces) / machines.slots + max(pieces, default=0.0)
    dying = {int(chance.integers(machines.count)): float(chance.uniform(0, about)) for _ in range(deaths)}
    waiting, end = deque(sorted(pieces, reverse=True)), 0.0
    while waiting:
        begin, slot = heapq.heappop(free)
        seconds = waiting.popleft()
        death = dying.get(slot % machines.count, -1.0)
        if begin <= death < begin + seconds:
            waiting.append(seconds)
            heapq.heappush(free, (death + machines.restart, slot))
        else:
            end = max(end, begin + seconds)
            heapq.heappush(free, (begin + seconds, slot))
    return end
