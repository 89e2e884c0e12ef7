"""The entropy coder: known answers, and every implementation against the reference."""

import gc
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterfill.coding.rans import Decoder, Machine, encode, ideal_bits, instruction_sets, lanes_for

ISAS = ("reference", *instruction_sets())
TRELLIS = np.array([[0, 2], [4, 6], [2, 0], [6, 4], [1, 3], [5, 7], [3, 1], [7, 5]], dtype=np.uint8)
BY_STATE = np.arange(8, dtype=np.uint16)
BY_PARITY = np.array([0, 3] * 4, dtype=np.uint16)


def table(**freq):
    """Frequencies [256] from keywords like s3=1000, m1=96 (m for minus)."""
    made = np.zeros(256, dtype=np.uint16)
    for name, count in freq.items():
        made[int(name[1:]) * (1 if name[0] == "s" else -1) & 255] = count
    return made


def random_table(rng):
    """Frequencies [256] of every temper: one symbol alone, nearly alone, two sided, flat, a few at random."""
    kind = rng.integers(5)
    if kind == 0:
        weights = np.eye(256)[rng.integers(256)]
    elif kind == 1:
        weights = np.eye(256)[rng.integers(256)] + 1e-9 * np.eye(256)[rng.integers(256)]
    elif kind == 2:
        weights = np.exp(-np.abs(np.arange(256, dtype=np.int8).astype(float)) / rng.uniform(0.2, 20))
    elif kind == 3:
        weights = np.ones(256)
    else:
        weights = rng.exponential(size=256) * (rng.random(256) < 0.1) + np.eye(256)[0] * 1e-3
    present = weights > 0
    freq = present + np.floor(weights / weights.sum() * (4096 - present.sum())).astype(int)
    freq[np.argmax(freq)] += 4096 - freq.sum()
    return freq.astype(np.uint16)


def draw(rng, freq, select):
    """A symbol [n] from each selected table, the rare ones more often than their share."""
    symbols = np.empty(len(select), dtype=np.int8)
    for number in np.unique(select):
        here = np.flatnonzero(select == number)
        present = np.flatnonzero(freq[number])
        likely = np.repeat(np.arange(256), freq[number])[rng.integers(0, 4096, len(here))]
        symbols[here] = np.where(rng.random(len(here)) < 0.1, rng.choice(present, len(here)), likely).astype(np.uint8)
    return symbols.view(np.int8)


def random_segments(rng, freq, sizes, machine=None):
    """Segments whose symbols can be coded; a machine asks for tables that all have the same symbols."""
    reach = 0 if machine is None else int(machine.offset.max())
    segments = []
    for size in sizes:
        select = rng.integers(0, len(freq) - reach, size).astype(np.uint16)
        plain = rng.random() < 0.3
        segments.append((draw(rng, freq, select * (not plain)), None if plain else select))
    return segments


class Case(NamedTuple):
    """What a stream is made of."""

    segments: list
    freq: np.ndarray
    lanes: int
    machine: Machine | None = None

    def encode(self, isa=None):
        return encode(*self, isa=isa)

    def decode(self, data, isa=None):
        """The symbols of all segments, after `finish`."""
        decoder = Decoder(data, *self[1:], isa=isa)
        found = [decoder.decode(len(symbols) if select is None else select) for symbols, select in self.segments]
        decoder.finish()
        return found

    def check(self, data, isa):
        """That this implementation writes and reads these bytes."""
        assert self.encode(isa) == data
        found = self.decode(data, isa)
        assert all((symbols == segment[0]).all() for symbols, segment in zip(found, self.segments, strict=True))


# Known answers


@pytest.mark.parametrize("isa", ISAS)
def test_one_symbol_is_worked_out_by_hand(isa):
    # 65536 = 32 * 2048 + 0, so the state becomes 32 * 4096 + 0 + 2048 = 0x20800.
    freq = table(s0=2048, s1=2048)[None]
    assert encode([(np.array([1], np.int8), None)], freq, 1, isa=isa) == bytes.fromhex("00080200")


@pytest.mark.parametrize("isa", ISAS)
def test_sixteen_fair_symbols_make_one_word(isa):
    # Each doubles the state: from 2^16 to 2^31 by fifteen, then a word (0) leaves and 2^15 doubles to 2^16.
    freq = table(s0=2048, s1=2048)[None]
    assert encode([(np.zeros(16, np.int8), None)], freq, 1, isa=isa) == bytes.fromhex("000001000000")


@pytest.mark.parametrize("isa", ISAS)
def test_certain_symbols_cost_nothing(isa):
    freq = table(m7=4096)[None]
    symbols = np.full(100_000, -7, np.int8)
    Case([(symbols, None)], freq, 64).check((1 << 16).to_bytes(4, "little") * 64, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_the_stream_never_changes(isa):
    freq = np.stack([table(s0=3000, s1=548, m1=548), table(s0=96, s5=2000, m128=2000)])
    select = np.array([0, 0, 0, 1, 1, 0, 0, 1, 0, 1, 1], np.uint16)
    first = np.array([0, 0, 1, -128, 5, 0, 0, 0, -1, 5, 5], np.int8)
    second = np.array([1, -1, 0, -1, 1, 1, -1, -1, 1, 1, 1, -1, -1, 1, 1, -1] * 3, np.int8)
    assert encode([(first, select), (second, None)], freq, 2, isa=isa) == bytes.fromhex(
        "48e4860054bbef420da6702def4eea0eebec041f60be600f"
    )


def test_ideal_bits_of_known_frequencies():
    freq = np.stack([table(s0=2048, s1=1024, s2=1024), table(s0=4096)])
    symbols = np.array([0, 1, 2, 0, 0], np.int8)
    assert ideal_bits([(symbols, None)], freq) == 1 + 2 + 2 + 1 + 1
    assert ideal_bits([(symbols, np.array([0, 0, 0, 1, 1], np.uint16)), (symbols[:1], None)], freq) == 1 + 2 + 2 + 1
    assert ideal_bits([(np.array([3], np.int8), None)], freq) == np.inf


def test_lanes_cost_at_most_a_five_hundredth_of_the_payload():
    assert [lanes_for(size) for size in (0, 1999, 2000, 3999, 4000, 63_999, 64_000, 10**9)] == [
        1,
        1,
        2,
        2,
        4,
        32,
        64,
        64,
    ]


# Every implementation against the reference


@given(seed=st.integers(0, 2**32), log_lanes=st.integers(0, 6), tables=st.integers(1, 5), with_machine=st.booleans())
def test_every_implementation_writes_and_reads_the_same_bytes(seed, log_lanes, tables, with_machine):
    rng, lanes, machine = np.random.default_rng(seed), 1 << log_lanes, None
    freq = np.stack([random_table(rng) for _ in range(tables)])
    if with_machine:
        freq = np.stack([rng.permutation(np.r_[np.full(255, 1), 3841]) for _ in range(tables + 7)]).astype(np.uint16)
        machine = Machine(TRELLIS, BY_STATE if seed % 2 else BY_PARITY)
    sizes = rng.integers(0, 5 * lanes + 3, rng.integers(0, 4))
    case = Case(random_segments(rng, freq, sizes, machine), freq, lanes, machine)
    data = case.encode("reference")
    for isa in ISAS:
        case.check(data, isa)


@pytest.mark.parametrize("lanes", [8, 32, 64])
@pytest.mark.parametrize("machine", [None, Machine(TRELLIS, 2 * BY_STATE)], ids=["plain", "machine"])
def test_long_segments(lanes, machine):  # longer than the blocks and buffers of the compiled coder
    rng = np.random.default_rng(lanes)
    freq = np.stack([rng.permutation(np.r_[np.full(192, 15), np.full(64, 19)]) for _ in range(16)]).astype(np.uint16)
    sizes = [35_001, 20_000] if machine else [1_500_001, 16_384]
    case = Case(random_segments(rng, freq, sizes, machine), freq, lanes, machine)
    data = case.encode(ISAS[1])
    for isa in ISAS[1:] if machine is None else ISAS:
        case.check(data, isa)
    assert len(data) * 8 - 32 * lanes < 1.002 * 8 * sum(sizes)


def test_a_machine_only_moves_the_tables():
    rng, lanes, offset = np.random.default_rng(5), 4, np.array([3, 0, 14, 1, 5, 5, 0, 2], np.uint16)
    freq = np.stack([rng.permutation(np.r_[np.full(255, 1), 3841]) for _ in range(2 * 8)]).astype(np.uint16)
    symbols, base = rng.integers(-128, 128, 61).astype(np.int8), rng.integers(0, 2, 61).astype(np.uint16)
    state, moved = [0] * lanes, base.copy()
    for i, symbol in enumerate(symbols.tolist()):
        moved[i] += offset[state[i % lanes]]
        state[i % lanes] = TRELLIS[state[i % lanes], symbol % 2]
    assert encode([(symbols, base)], freq, lanes, Machine(TRELLIS, offset)) == encode([(symbols, moved)], freq, lanes)


def test_the_real_size_is_the_ideal_one_and_the_states():
    rng = np.random.default_rng(3)
    freq = np.exp(-np.abs(np.arange(256, dtype=np.int8).astype(float)) / 2)
    freq = 1 + np.floor(freq / freq.sum() * 3800).astype(int)
    freq[0] += 4096 - freq.sum()
    freq = freq.astype(np.uint16)[None]
    symbols = np.repeat(np.arange(256, dtype=np.uint8), freq[0])[rng.integers(0, 4096, 100_000)].view(np.int8)
    bits = ideal_bits([(symbols, None)], freq)
    assert bits <= 8 * len(encode([(symbols, None)], freq, 16)) <= 1.001 * bits + 16 * 32


# Buffers


@pytest.mark.parametrize("isa", ISAS)
def test_any_buffer_is_read_in_place_and_kept_alive(isa):
    freq = table(s0=2000, s1=2096)[None]
    symbols = np.arange(1000, dtype=np.int8) & 1
    data = encode([(symbols, None)], freq, 64, isa=isa)
    odd = bytearray(b"?" + data)
    for view in (memoryview(odd)[1:], np.frombuffer(data, np.uint8), bytearray(data)):
        decoder = Decoder(view, freq.copy(), 64, isa=isa)
        del view
        gc.collect(0)  # what was made just now
        assert (decoder.decode(1000) == symbols).all()
        decoder.finish()


@pytest.mark.parametrize("isa", ISAS)
def test_strided_arguments(isa):
    freq = np.repeat(np.stack([table(s0=2000, s1=2096), table(s0=4000, s1=96)]), 2, axis=0)[::2]
    symbols, select = (np.arange(1000, dtype=np.int8) & 1)[::3], np.zeros(1000, np.uint16)[::3]
    case = Case([(symbols, select)], freq, 4)
    case.check(case.encode("reference"), isa)
