"""The entropy coder as the library uses it: arguments checked, and the compiled loops wherever there are any.

The stream is specified in `rans_reference`; every implementation writes and reads the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from waterfill.coding import native, rans_reference
from waterfill.coding.rans_reference import STATE_FLOOR, TABLE_BITS
from waterfill.errors import CorruptFile

MAX_LANES = 64
"""Lanes of the widest stream."""

Segment = tuple[np.ndarray, np.ndarray | None]
"""Symbols int8 [n] and the table of each, uint16 [n]; None: all use table 0."""

Bytes = bytes | bytearray | memoryview | np.ndarray
"""Buffers that a stream is read from, in place."""

_SYMBOLS_AT_A_TIME = 1 << 18  # symbols that `ideal_bits` looks up at a time, so that its indices stay small


@dataclass(frozen=True, eq=False)
class Machine:
    """A lane machine: a symbol's table is `select + offset[state]`; then `state = transition[state, symbol & 1]`."""

    transition: np.ndarray
    """uint8 [states, 2]; the first state is 0."""
    offset: np.ndarray
    """uint16 [states]; how far each moves the table."""


def encode(
    segments: Sequence[Segment], freq: np.ndarray, lanes: int, machine: Machine | None = None, *, isa: str | None = None
) -> bytes:
    """The stream of all segments, under the tables `freq` (uint16 [tables, 256], each summing to 4096).

    `isa` names the implementation ("reference" or one of `instruction_sets()`); the bytes do not depend on it.
    Raises ValueError for arguments that no stream can hold, above all a symbol of frequency 0.
    """
    encoder = _stream("StreamEncoder", isa, *_checked(freq, lanes, machine))
    for position in reversed(range(len(segments))):
        symbols, select = segments[position]
        symbols = _vector(symbols, np.int8, "symbols")
        if not encoder.push(symbols, _checked_select(select, len(symbols))):
            raise ValueError(f"segment {position} has a symbol whose frequency is 0 in its table: escape it")
    return encoder.bytes()


class Decoder:
    """Reads a stream segment by segment, in the order they were given to `encode`. Not for two threads at once.

    `data` is bytes-like and is not copied. Raises CorruptFile if it cannot be such a stream, ValueError for arguments
    that no stream has. Memory beyond the result: 16 KiB per table that is really selected.
    """

    def __init__(
        self, data: Bytes, freq: np.ndarray, lanes: int, machine: Machine | None = None, *, isa: str | None = None
    ):
        arguments = _checked(freq, lanes, machine)
        octets = np.frombuffer(data, dtype=np.uint8)
        if len(octets) < 4 * lanes or len(octets) % 2:
            raise CorruptFile(
                f"a stream of {lanes} lanes has at least {4 * lanes} bytes, in pairs; found {len(octets)}"
            )
        if (octets[: 4 * lanes].view("<u4") < STATE_FLOOR).any():
            raise CorruptFile("a lane of the stream begins with a state that no encoder leaves")
        self._stream = _stream("StreamDecoder", isa, octets, *arguments)

    def decode(self, select: np.ndarray | int) -> np.ndarray:
        """The next segment, int8 [n], given the table of every symbol (uint16 [n]) or, for table 0, just n.

        The result takes n bytes, and a stream may spend next to nothing on a symbol: n is for the caller to bound.
        Raises CorruptFile when the stream ends too early.
        """
        tables = None if isinstance(select, int) else select
        symbols = np.empty(select if isinstance(select, int) else len(select), dtype=np.int8)
        if not self._stream.decode_into(symbols, _checked_select(tables, len(symbols))):
            raise CorruptFile(f"the stream ended before the {len(symbols)} symbols of a segment were complete")
        return symbols

    def finish(self) -> None:
        """Raises CorruptFile unless the stream is used up and consistent: call it after the last segment."""
        if not self._stream.finished():
            raise CorruptFile("the stream does not end where its symbols end: damaged, or read with other tables")


def lanes_for(payload_bytes: int) -> int:
    """The lanes worth having: the most (up to 64) whose overhead, two bytes each, is below 0.2 % of the payload."""
    affordable = max(1, min(MAX_LANES, payload_bytes // 1000))
    return 1 << (affordable.bit_length() - 1)


def ideal_bits(segments: Sequence[Segment], freq: np.ndarray) -> float:
    """The sum of -log2(frequency / 4096) over all symbols, in bits; infinite if one has frequency 0."""
    _checked(freq, 1, None)
    with np.errstate(divide="ignore"):
        cost = TABLE_BITS - np.log2(freq.astype(np.float64)).ravel()
    total = 0.0
    for symbols, select in segments:
        tables = _checked_select(select, len(symbols))
        codes = _vector(symbols, np.int8, "symbols").view(np.uint8)
        for begin in range(0, len(codes), _SYMBOLS_AT_A_TIME):
            index = codes[begin : begin + _SYMBOLS_AT_A_TIME].astype(np.intp)
            if tables is not None:
                index += tables[begin : begin + _SYMBOLS_AT_A_TIME].astype(np.intp) << 8
            total += float(cost[index].sum())
    return total


def instruction_sets() -> tuple[str, ...]:
    """The compiled implementations that run on this machine, the fastest last; none if nothing was compiled."""
    native.warn_if_missing()
    return tuple(native.core.instruction_sets()) if native.core else ()


def _stream(name: str, isa: str | None, *arguments: object) -> Any:
    """A StreamEncoder or StreamDecoder: the compiled one unless there is none or the reference is requested."""
    names = () if isa == "reference" else instruction_sets()
    if isa == "reference" or (isa is None and not names):
        return getattr(rans_reference, name)(*arguments)
    if isa is not None and isa not in names:
        raise ValueError(f"wanted instruction set {isa!r}, but this machine has {('reference', *names)}")
    return getattr(native.core, name)(*arguments, isa or names[-1])


def _vector(values: np.ndarray, dtype: type, name: str) -> np.ndarray:
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype != dtype:
        actual = f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(f"{name} must be a vector of {np.dtype(dtype)}; found {actual}")
    return np.ascontiguousarray(values)


def _checked_select(select: np.ndarray | None, symbols: int) -> np.ndarray | None:
    if select is None:
        return None
    select = _vector(select, np.uint16, "select")
    if len(select) != symbols:
        raise ValueError(f"select names {len(select)} tables for {symbols} symbols; it must name one for each")
    return select


def _checked(
    freq: np.ndarray, lanes: int, machine: Machine | None
) -> tuple[np.ndarray, int, np.ndarray | None, np.ndarray | None]:
    """The arguments of a stream as both implementations take them."""
    if lanes not in (1, 2, 4, 8, 16, 32, MAX_LANES):
        raise ValueError(f"lanes must be a power of two from 1 to {MAX_LANES}; found {lanes}")
    if freq.dtype != np.uint16 or freq.ndim != 2 or freq.shape[1] != 256 or not 1 <= len(freq) <= 1 << 16:
        raise ValueError(f"freq must be uint16 [1 to 65536 tables, 256]; found {freq.dtype} {list(freq.shape)}")
    wrong = np.flatnonzero(freq.sum(axis=1, dtype=np.int64) != 1 << TABLE_BITS)
    if len(wrong):
        raise ValueError(f"the frequencies of table {wrong[0]} sum to {freq[wrong[0]].sum()}, not {1 << TABLE_BITS}")
    freq = np.ascontiguousarray(freq)
    if machine is None:
        return freq, lanes, None, None
    transition, states = machine.transition, len(machine.transition)
    if transition.dtype != np.uint8 or transition.shape[1:] != (2,) or not 1 <= states <= 256:
        raise ValueError(f"transition must be uint8 [1 to 256 states, 2]; found {transition.dtype} {transition.shape}")
    offset = _vector(machine.offset, np.uint16, "offset")
    if len(offset) != states or transition.max() >= states or offset.max() >= len(freq):
        raise ValueError(f"the machine's {states} states, {len(offset)} offsets, lead outside its {len(freq)} tables")
    return freq, lanes, np.ascontiguousarray(transition), offset
