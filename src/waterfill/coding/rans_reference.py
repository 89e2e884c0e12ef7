"""The entropy coder, written to be read: this file is the specification, the compiled coder equals it byte for byte.

Interleaved rANS (asymmetric numeral systems, Duda, arXiv 1311.2540) over int8 symbols.

* A **table** is 256 frequencies (index: symbol & 255) that sum to 4096. A symbol owns the slots from `start`, the sum
  of the frequencies before its own, to `start + frequency - 1`. A symbol of frequency 0 cannot be coded.
* A **stream** has L lanes, L a power of two up to 64; each holds a state in [2^16, 2^32). Symbols come in segments;
  symbol i of a segment belongs to lane i mod L, so every segment begins again at lane 0.
* Decoding, group by group of L symbols: the low 12 bits of a lane's state are a slot, the slot gives the symbol,

      state = frequency * (state >> 12) + slot - start,

  and then, in the order of the lanes, each state below 2^16 takes one 16-bit word: state << 16 | word.
* The table of a symbol is select[i]. An optional **lane machine** moves between tables: then it is
  select[i] + offset[state_of_lane], and after the symbol the lane's machine state becomes
  transition[state_of_lane, symbol & 1]. Machine states are 0 at the beginning of every segment.
* **Bytes**: the L states (32 bits, little-endian), then the words (16 bits, little-endian) in the order of reading.
  The encoder starts every lane at 2^16, and runs backwards: so a decoder must end with 2^16 in every lane and no word
  left. That, and every table and length, is agreed upon outside the stream.
"""

import numpy as np

TABLE_BITS = 12
"""Frequencies of a table sum to 2**TABLE_BITS."""
STATE_FLOOR = 1 << 16
"""The smallest state, and the one every lane starts from."""

_WORD_BITS = 16
_FULL_SHIFT = 32 - TABLE_BITS  # a state at or above frequency << 20 would leave the 32 bits with one more symbol


class _Tables:
    """Frequencies, starts and the lane machine, as both directions use them.

    `freq` is uint16 [tables, 256], `transition` uint8 [states, 2] and `offset` uint16 [states], or both are None.
    """

    def __init__(self, freq: np.ndarray, lanes: int, transition: np.ndarray | None, offset: np.ndarray | None):
        self.lanes = lanes
        self.freq = freq.astype(np.int64)
        self.start = np.cumsum(self.freq, axis=1) - self.freq
        self.transition = np.zeros((1, 2), np.uint8) if transition is None else transition
        self.offset = np.zeros(1, np.int64) if offset is None else offset.astype(np.int64)

    def check(self, select: np.ndarray | None) -> None:
        """Raises ValueError if a symbol's table may not exist, whatever the machine's state."""
        largest = 0 if select is None or not len(select) else int(select.max())
        reached = largest + int(self.offset.max())
        if reached >= len(self.freq):
            raise ValueError(f"select reaches table {reached}, but there are only {len(self.freq)}")

    def of(self, select: np.ndarray | None, group: slice, machine: np.ndarray) -> np.ndarray:
        """Table numbers [group] for machine states [group]."""
        return self.offset[machine] + (0 if select is None else select[group])

    def moved(self, machine: np.ndarray, symbols: np.ndarray) -> np.ndarray:
        """Machine states [group] after the symbols [group]."""
        return self.transition[machine, symbols & 1].astype(np.int64)


class StreamEncoder:
    """Segments to bytes. The last segment is pushed first: what is written last is read first."""

    def __init__(self, freq: np.ndarray, lanes: int, transition: np.ndarray | None, offset: np.ndarray | None):
        self._tables = _Tables(freq, lanes, transition, offset)
        self._state = np.full(lanes, STATE_FLOOR, dtype=np.int64)
        self._words: list[np.ndarray] = []  # of each group, the last group first

    def push(self, symbols: np.ndarray, select: np.ndarray | None) -> bool:
        """Encodes one segment: int8 [n] and uint16 [n] (None: table 0). False if a symbol has frequency 0."""
        self._tables.check(select)
        lanes = self._tables.lanes
        groups = [slice(begin, begin + lanes) for begin in range(0, len(symbols), lanes)]
        tables, machine = [], np.zeros(lanes, dtype=np.int64)
        for group in groups:  # the machine runs forwards
            machine = machine[: len(symbols[group])]
            tables.append(self._tables.of(select, group, machine))
            machine = self._tables.moved(machine, symbols[group])
        codes = symbols.view(np.uint8)
        return all(self._push_group(codes[groups.pop()], tables.pop()) for _ in range(len(groups)))

    def _push_group(self, codes: np.ndarray, table: np.ndarray) -> bool:
        freq, start = self._tables.freq[table, codes], self._tables.start[table, codes]
        if not freq.all():
            return False
        state = self._state[: len(codes)]
        full = state >> _FULL_SHIFT >= freq
        self._words.append(state[full] & (1 << _WORD_BITS) - 1)
        state[full] >>= _WORD_BITS
        state[:] = (state // freq << TABLE_BITS) + state % freq + start
        return True

    def bytes(self) -> bytes:
        """The finished stream."""
        words = np.concatenate([*self._words[::-1], np.zeros(0, np.int64)])
        return self._state.astype("<u4").tobytes() + words.astype("<u2").tobytes()


class StreamDecoder:
    """Bytes to segments, in order. `data` is uint8 [bytes]: the states and whole words."""

    def __init__(
        self, data: np.ndarray, freq: np.ndarray, lanes: int, transition: np.ndarray | None, offset: np.ndarray | None
    ):
        self._tables = _Tables(freq, lanes, transition, offset)
        every_code = np.tile(np.arange(256, dtype=np.uint8), len(freq))
        self._code_of_slot = np.repeat(every_code, freq.ravel()).reshape(len(freq), 1 << TABLE_BITS)
        self._state = data[: 4 * lanes].view("<u4").astype(np.int64)
        self._words = data[4 * lanes :].view("<u2")  # unread ones

    def decode_into(self, symbols: np.ndarray, select: np.ndarray | None) -> bool:
        """Decodes one segment into int8 [n], with the tables uint16 [n] (None: table 0). False if the words ran out."""
        self._tables.check(select)
        machine = np.zeros(self._tables.lanes, dtype=np.int64)
        for begin in range(0, len(symbols), self._tables.lanes):
            group = slice(begin, begin + self._tables.lanes)
            machine = machine[: len(symbols[group])]
            codes = self._decode_group(self._tables.of(select, group, machine))
            if codes is None:
                return False
            symbols[group] = codes.view(np.int8)
            machine = self._tables.moved(machine, codes)
        return True

    def _decode_group(self, table: np.ndarray) -> np.ndarray | None:
        state = self._state[: len(table)]
        slot = state & (1 << TABLE_BITS) - 1
        codes = self._code_of_slot[table, slot]
        state[:] = self._tables.freq[table, codes] * (state >> TABLE_BITS) + slot - self._tables.start[table, codes]
        refill = state < STATE_FLOOR
        count = int(refill.sum())
        words, self._words = self._words[:count], self._words[count:]
        if len(words) < count:
            return None
        state[refill] = state[refill] << _WORD_BITS | words
        return codes

    def finished(self) -> bool:
        """Whether the stream is used up, to the byte, and every lane is back where the encoder began."""
        return not len(self._words) and bool((self._state == STATE_FLOOR).all())
