"""Work on the weights of a checkpoint, sent to an engine in pieces; what it finds is kept where it is looked for here.

The decisions (prices, which weight is fitted again) are made here, by the same code as without an engine and from the
same numbers. So the file has the same bytes.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from waterfill.compression.allocation.curve import Point
from waterfill.compression.allocation.sample import SAMPLED_ENTRIES
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.engine.answers import read_answers
from waterfill.compression.engine.engine import Engine, Lost
from waterfill.compression.engine.failures import raise_answered
from waterfill.compression.engine.piece import CHECK, FIT, INSPECT, MEASURE, Item, Piece
from waterfill.compression.engine.reference import Reference
from waterfill.compression.store import DirectoryStore
from waterfill.errors import EngineError
from waterfill.network.layout import RAW
from waterfill.network.stored import Stored
from waterfill.part import Spec

_LEAST, _MOST = 1 << 20, 1 << 25  # entries of the weights of a piece
_AT_LEAST = 1 << 15  # entries whose work a weight takes, however small
_ROUNDS = 8  # pieces for each slot
_HERE = 1 << 17  # entries of a single weight that takes less time to fit than to send

Told = Callable[[str, int], None]
"""(stage, index of a weight): it is done."""


@dataclass
class Remote:
    """The tensors of a checkpoint as an engine is told of them. items: a weight each, in order."""

    engine: Engine
    items: list[Item]

    @property
    def _called(self) -> str:
        return f"the engine {type(self.engine).__name__}"

    @classmethod
    def of(cls, engine: Engine, tensors: Sequence[tuple[Stored, Stored | None, Spec | None]]) -> "Remote":
        """tensors: each with its mask, if it has one, and its spec, None to keep every bit."""
        items = []
        for i, (stored, mask, spec) in enumerate(tensors):
            hidden = None if mask is None else Reference.of(mask)
            items.append(Item(i, Reference.of(stored), None if spec is None else repr(spec), hidden))
        return cls(engine, items)

    def inspect(self) -> dict[int, tuple[str, str]]:
        """Of every tensor with a spec: why it is kept bit for bit, or "", and why the spec does not fit it, or ""."""
        asked = [item for item in self.items if item.spec is not None]
        return {i: (answer["kept"], answer["reason"]) for i, answer in self.ask(INSPECT, asked)}

    def checksums(self, indices: Sequence[int]) -> dict[int, int]:
        """Checksums of the values of some weights."""
        return {i: answer["input"] for i, answer in self.ask(CHECK, [self.items[i] for i in indices])}

    def ask(self, do: str, items: Sequence[Item], work: tuple[str, int] | None = None) -> Iterator[tuple[int, Any]]:
        """(index, answer) of each item, in any order.

        A piece that is lost is sent again, each of its weights by itself; what is lost then is sent once more when all
        others are done, one at a time: so a weight is blamed only for processes in which it was alone. Raises the error
        of an answer, and EngineError for a weight that is lost three times.
        """
        limit = limit_of(sum(cost_of(do, item) for item in items), self.engine.slots)
        groups = list(groups_of(items, lambda item: cost_of(do, item), limit))
        suspects = yield from self._answers(do, groups, work)
        suspects = yield from self._answers(do, [[item] for item, _ in suspects], work)
        deadly: list[tuple[Item, str]] = []
        for suspect, _ in suspects:
            deadly += yield from self._answers(do, [[suspect]], work)
        if deadly:
            (item, why), more = deadly[0], f", and {len(deadly) - 1} more" if len(deadly) > 1 else ""
            raise EngineError(f"no process survives the weight {item.where.name!r} of {item.where.file}{more}: {why}")

    def _answers(
        self, do: str, groups: Sequence[Sequence[Item]], work: tuple[str, int] | None
    ) -> Generator[tuple[int, Any], None, list[tuple[Item, str]]]:
        """The answers to groups of items; returns the items of those that were lost, with the reason."""
        lost: list[tuple[Item, str]] = []
        if groups:
            pieces = [Piece(do, group, work) for group in groups]
            left = dict(enumerate(pieces))
            for place, text in self.engine.answers([piece.text() for piece in pieces]):
                piece = left.pop(place, None)
                if piece is None and place not in range(len(pieces)):
                    raise EngineError(f"{self._called} answers piece {place!r}, and there are {len(pieces)} of them")
                if piece is None:  # answered before
                    continue
                if isinstance(text, Lost):
                    lost += [(item, text.why) for item in piece.items]
                    continue
                for item, answer in zip(piece.items, read_answers(piece, text, self._called), strict=True):
                    if "error" in answer:
                        raise_answered(answer["error"], item.where)
                    yield item.i, answer
        return lost


def limit_of(total: float, slots: int) -> float:
    """Entries of a piece: several pieces for each slot, unless they would be very large or small."""
    return min(_MOST, max(_LEAST, total / (_ROUNDS * max(1, slots))))


def cost_of(do: str, item: Item) -> int:
    """The work on a weight, in entries of a fit."""
    entries = item.where.entries
    return max(_AT_LEAST, min(entries, SAMPLED_ENTRIES) if do == MEASURE else entries)


def groups_of(items: Iterable[Item], cost: Callable[[Item], int], limit: float) -> Iterator[list[Item]]:
    """Neighbors of at most `limit` together, or one alone; the largest weights first, so that none comes late."""
    group: list[Item] = []
    spent = 0
    for item in sorted(items, key=cost, reverse=True):
        if group and spent + cost(item) > limit:
            yield group
            group, spent = [], 0
        group.append(item)
        spent += cost(item)
    if group:
        yield group


@dataclass
class RemoteWork:
    """Measures and fits weights on an engine (`Ahead`).

    Points go into the curves of the weights, blobs into the store.
    """

    remote: Remote
    weights: Sequence[Weight]
    store: DirectoryStore
    told: Told
    _measured: set[int] = field(default_factory=set)

    def measure(self, k: int) -> None:
        """The curve of every weight at price 4^k."""
        if k in self._measured:
            return
        self._measured.add(k)
        known = {i for i, weight in enumerate(self.weights) if weight.layout.role == RAW and weight.curve.points}
        for i in known:  # the price changes nothing
            self.weights[i].curve.points[k] = next(iter(self.weights[i].curve.points.values()))
        items = [self._item(i, float(k)) for i in range(len(self.weights)) if i not in known]
        for i, answer in self.remote.ask(MEASURE, items):
            self.weights[i].curve.points[k] = Point(answer["bits"], answer["distortion"])
            self.told("measuring", i)

    def fit(self, prices: Mapping[int, float]) -> None:
        """Fit weights that the store does not have at their price; a small one by itself is left to be fitted here."""
        items = [self._item(i, price) for i, price in prices.items() if not self.store.has(i, price)]
        if len(items) == 1 and items[0].where.entries <= _HERE:
            return
        for i, answer in self.remote.ask(FIT, items, self.store.place):
            self.store.adopt(i, answer["note"], answer["staged"])
            self.told("fitting", i)

    def _item(self, i: int, at: float) -> Item:
        weight = self.weights[i]
        return replace(
            self.remote.items[i],
            kept=weight.kept,
            factor=weight.factor,
            lines=weight.lines,
            format=weight.format,
            at=at,
        )
