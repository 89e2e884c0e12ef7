"""Tally, Writer and Reader share one set of methods: a part counts its bits, writes and reads by the same calls.

Tally counts ideal bits without coding; Writer makes the bytes; Reader reads them back and checks every count before it
is used. Allocation limit: a blob of n bytes may decode to at most `FREE + PER_BYTE * n` entries, and the writer pads
the rare blob (a large constant) that would decode to more. As a blob has a byte or more, a file of n bytes decodes to
at most `(FREE + PER_BYTE) * n` entries, however many blobs it holds.
"""

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np

from waterfill.coding import rice
from waterfill.errors import CorruptFile

FREE = 1 << 14
PER_BYTE = 4096


class Planned(Protocol):
    """A matrix of numbers with its coding decided: its entries and bits are known before a byte is written."""

    @property
    def entries(self) -> int:
        """Entries that reading back allocates."""

    @property
    def bits(self) -> float:
        """The bits that `write` takes; ideal ones where it codes by entropy."""

    def write(self, out: "Sink") -> None:
        """Write everything that reading needs and the reader does not know from the context."""


class Sink(ABC):
    """The methods that Tally and Writer share."""

    def __init__(self) -> None:
        self.entries = 0

    def claim(self, entries: int) -> None:
        """Announce that reading back allocates this many entries."""
        self.entries += int(entries)

    @abstractmethod
    def raw(self, data: bytes) -> None:
        """Bytes as they are."""

    @abstractmethod
    def put(self, plan: Planned) -> None:
        """A plan, such as that of `waterfill.coding.codes.matrix` for a matrix of codes."""

    def uint(self, value: int) -> None:
        """A non-negative integer, 7 bits a byte, low bits first."""
        if value < 0:
            raise ValueError(f"uint writes a number from 0 up; found {value}")
        data = bytearray()
        while value >= 128:
            data.append(value & 127 | 128)
            value >>= 7
        data.append(value)
        self.raw(bytes(data))

    def float32(self, value: float) -> None:
        """A little-endian IEEE 754 single."""
        self.raw(np.array(value, dtype="<f4").tobytes())

    def ints(self, values: np.ndarray) -> None:
        """A short vector of integers within 32 bits, Rice coded; its length is known to the reader."""
        values = np.asarray(values, dtype=np.int64).ravel()
        self.claim(len(values))
        if len(values) == 0:
            return
        center = rice.center_of(values)
        folded = rice.zigzag(values - center)
        k = rice.best_parameter(folded)
        self.uint(rice.fold(center))
        self.uint(k)
        self.raw(rice.pack(folded, k))


class Tally(Sink):
    """Counts bits: exact for everything but codes, whose bits are the ideal code length under their densities."""

    def __init__(self) -> None:
        super().__init__()
        self.bits = 0.0

    def raw(self, data: bytes) -> None:
        self.bits += 8 * len(data)

    def put(self, plan: Planned) -> None:
        self.claim(plan.entries)
        self.bits += plan.bits


class Writer(Sink):
    """Makes the bytes of one blob."""

    def __init__(self) -> None:
        super().__init__()
        self._data = bytearray()

    def raw(self, data: bytes) -> None:
        self._data += data

    def put(self, plan: Planned) -> None:
        self.claim(plan.entries)
        plan.write(self)

    @property
    def data(self) -> bytes:
        """What was written so far."""
        return bytes(self._data)

    def finish(self) -> bytes:
        """The blob, padded with zeros in the rare case that it would expand to more than it has earned."""
        short = self.entries - FREE - PER_BYTE * len(self._data)
        return bytes(self._data) + bytes(max(0, -(-short // PER_BYTE)))


class Reader:
    """Reads one blob; whatever is not as a Writer would have written it raises `CorruptFile`."""

    def __init__(self, data: bytes, what: str = "blob") -> None:
        self._data = memoryview(data)
        self._at = 0
        self._entries = 0
        self._allowance = FREE + PER_BYTE * len(data)
        self._what = what
        self.depth = 0

    def fail(self, why: str) -> CorruptFile:
        """The error to raise, saying where."""
        return CorruptFile(f"{self._what}, byte {self._at}: {why}; the file is damaged or was not written by waterfill")

    def claim(self, entries: int) -> int:
        """Prove that this many entries may be allocated; returns them."""
        self._entries += int(entries)
        if entries < 0 or self._entries > self._allowance:
            raise self.fail(f"{len(self._data)} bytes claim to hold {self._entries} entries, more than they can")
        return int(entries)

    def raw(self, count: int) -> bytes:
        """The next `count` bytes."""
        if not 0 <= count <= len(self._data) - self._at:
            raise self.fail(f"{count} more bytes wanted, {len(self._data) - self._at} are left")
        self._at += count
        return bytes(self._data[self._at - count : self._at])

    def ahead(self) -> tuple[np.ndarray, int, int]:
        """All bytes (uint8), the place of the next one, and how many entries may still be claimed."""
        return np.frombuffer(self._data, dtype=np.uint8), self._at, self._allowance - self._entries

    def skip(self, at: int, entries: int) -> None:
        """Go on at another place, after the core read up to it and claimed so many entries."""
        self._at = at
        self._entries += entries

    def uint(self, limit: int) -> int:
        """A non-negative integer of at most `limit`."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            if byte == 0 and shift:
                raise self.fail("a number with needless bytes")
            value |= (byte & 127) << shift
            if byte < 128:
                if value > limit:
                    raise self.fail(f"the number {value} is over its limit {limit}")
                return value
        raise self.fail("a number of more than ten bytes")

    def _byte(self) -> int:
        if self._at == len(self._data):
            raise self.fail("1 more bytes wanted, 0 are left")
        self._at += 1
        return self._data[self._at - 1]

    def float32(self) -> float:
        """A finite single."""
        value = float(np.frombuffer(self.raw(4), dtype="<f4")[0])
        if not np.isfinite(value):
            raise self.fail("a number that is not finite")
        return value

    def ints(self, count: int) -> np.ndarray:
        """A vector (int64) that `Sink.ints` wrote."""
        self.claim(count)
        if count == 0:
            return np.zeros(0, dtype=np.int64)
        center = rice.unfold(self.uint((1 << 33) - 1))
        k = self.uint(rice.PARAMETERS - 1)
        values, used = rice.unpack(np.frombuffer(self._data, dtype=np.uint8)[self._at :], count, k)
        self._at += used
        return rice.unzigzag(values) + center

    def end(self) -> None:
        """Prove that nothing is left but the padding that the writer would have put there."""
        rest = bytes(self._data[self._at :])
        short = self._entries - FREE - PER_BYTE * self._at
        if rest != bytes(max(0, -(-short // PER_BYTE))):
            raise self.fail(f"{len(rest)} bytes are left over")
