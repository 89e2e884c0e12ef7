"""Stores for the results of fitted weights: in memory, or in a work directory that outlives a crash."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from waterfill.compression.allocation.weight import Weight
from waterfill.dtypes import octets
from waterfill.errors import CorruptFile, PlanMismatch
from waterfill.model.entry import Entry
from waterfill.storage.work_directory import Journal


@dataclass(frozen=True)
class Fitted:
    """A fitted weight without its blob. words: describe its parts. size: bytes. error: relative to the tensor. memory:
    bytes that packed layers hold of it, where the budget counts these; else 0."""

    words: str
    size: int
    error: float | None
    memory: int = 0


class Store(Protocol):
    """The results of fitted weights, by position. Of two fits of a weight the later one is kept."""

    def fit(self, i: int, weight: Weight, price: float) -> Fitted:
        """Fit a weight at a price, nats per bit, and keep the result."""

    def get(self, i: int) -> Fitted | None:
        """A fitted weight; None where it is not fitted yet."""

    def blob(self, i: int) -> bytes:
        """The bytes of a fitted weight."""


class KeepingStore(Store, Protocol):
    """A store that is given results, too."""

    def put(self, i: int, entry: Entry, price: float) -> None:
        """Keep a weight that was fitted at a price."""

    def price(self, i: int) -> float:
        """The price at which a weight that was put was fitted."""


@dataclass(frozen=True, eq=False)
class MemoryStore:
    """Everything in memory, the parts of each weight too."""

    entries: dict[int, Entry] = field(default_factory=dict)
    prices: dict[int, float] = field(default_factory=dict)
    memory: dict[int, int] = field(default_factory=dict)

    def put(self, i: int, entry: Entry, price: float) -> None:
        self.entries[i], self.prices[i] = entry, price

    def price(self, i: int) -> float:
        return self.prices[i]

    def fit(self, i: int, weight: Weight, price: float) -> Fitted:
        self.entries[i] = weight.fit(price)
        self.memory[i] = weight.held(self.entries[i].parts)
        return self._described(i)

    def get(self, i: int) -> Fitted | None:
        return self._described(i) if i in self.entries else None

    def blob(self, i: int) -> bytes:
        return self.entries[i].blob

    def _described(self, i: int) -> Fitted:
        entry = self.entries[i]
        return Fitted(entry.words, len(entry.blob), entry.error, self.memory.get(i, 0))


@dataclass(frozen=True, eq=False)
class JournalStore:
    """Results in a work directory; those of an earlier run are there too. count: of the weights."""

    journal: Journal
    count: int

    @cached_property
    def _notes(self) -> dict[int, dict[str, Any]]:
        return self.journal.finished(self.count)

    def put(self, i: int, entry: Entry, price: float) -> None:
        note = {"words": entry.words, "error": entry.error, "bytes": len(entry.blob), "price": price}
        self.journal.put(i, entry.blob, note)
        self._notes[i] = note

    def price(self, i: int) -> float:
        return float(self._notes[i]["price"])

    def fit(self, i: int, weight: Weight, price: float) -> Fitted:
        self.put(i, weight.fit(price), price)
        return _noted(self._notes[i])

    def get(self, i: int) -> Fitted | None:
        return _noted(self._notes[i]) if i in self._notes else None

    def blob(self, i: int) -> bytes:
        return self.journal.blob(i)


Checksums = Callable[[Sequence[int]], Mapping[int, int]]


class DirectoryStore:
    """Blobs in a work directory. A blob of the same price, also of an earlier run, is reused.

    checksums: (indices) -> checksums of the values of these weights; None to take them here.

    Raises:
        PlanMismatch: a blob whose weight has other values now.
    """

    def __init__(self, journal: Journal, weights: list[Weight], checksums: Checksums | None = None) -> None:
        self._journal = journal
        self._notes = journal.finished(len(weights))
        known = {} if checksums is None else checksums(list(self._notes))
        for i, note in self._notes.items():
            if note.get("input") != (known[i] if i in known else checksum(weights[i].load())):
                raise PlanMismatch(
                    f"the work directory belongs to another job: tensor {weights[i].name!r} has other values now. "
                    "Put the checkpoint back, or delete the folder to begin anew"
                )

    def fit(self, i: int, weight: Weight, price: float) -> Fitted:
        if not self.has(i, price):
            note, blob = note_of(weight, price)
            self._journal.put(i, blob, note)
            self._notes[i] = note
        return _noted(self._notes[i])

    def has(self, i: int, price: float) -> bool:
        """Whether the last fit of a weight was at this price."""
        return self._notes.get(i, {}).get("price") == price

    @property
    def place(self) -> tuple[str, int]:
        """The absolute path of the work directory and the checksum of its plan."""
        return str(self._journal.folder.absolute()), self._journal.plan_checksum() or 0

    def adopt(self, i: int, note: dict[str, Any], staged: str) -> None:
        """Keep what another process has fitted. staged: as of `Journal.stage`."""
        self._journal.adopt(i, note, staged)
        self._notes[i] = note

    def get(self, i: int) -> Fitted | None:
        return _noted(self._notes[i]) if i in self._notes else None

    def blob(self, i: int) -> bytes:
        blob = self._journal.blob(i)
        if zlib.crc32(blob) != self._notes[i].get("crc", zlib.crc32(blob)):
            raise CorruptFile(f"{self._journal.folder}: blob {i} is not what was written there; run the job again")
        return blob


def _noted(note: dict[str, Any]) -> Fitted:
    return Fitted(note["words"], note["bytes"], note["error"], note.get("memory", 0))


def note_of(weight: Weight, price: float) -> tuple[dict[str, Any], bytes]:
    """Fit a weight at a price: what a work directory notes of it, and its blob."""
    values = checksum(weight.load())
    entry = weight.fit(price)
    memory = weight.held(entry.parts)
    note = {"words": entry.words, "error": entry.error, "bytes": len(entry.blob), "memory": memory}
    return note | {"price": price, "input": values}, entry.blob


def checksum(tensor: Tensor) -> int:
    """A checksum of the values of a tensor."""
    return zlib.crc32(octets(tensor).numpy().data)
