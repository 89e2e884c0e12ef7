"""What the entropy coder refuses: damaged streams, wrong arguments; and what it does without its compiled core."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterfill.coding import native
from waterfill.coding.rans import Decoder, Machine, encode, instruction_sets
from waterfill.errors import CorruptFile

ISAS = ("reference", *instruction_sets())
TRELLIS = np.array([[0, 2], [4, 6], [2, 0], [6, 4], [1, 3], [5, 7], [3, 1], [7, 5]], dtype=np.uint8)
BY_STATE = np.arange(8, dtype=np.uint16)


def table(**freq):
    """Frequencies [256] by symbol: s1 is 1, m1 is -1."""
    made = np.zeros(256, dtype=np.uint16)
    for name, count in freq.items():
        made[int(name[1:]) * (1 if name[0] == "s" else -1) & 255] = count
    return made


def small_segment(size):
    rng = np.random.default_rng(size)
    select = rng.integers(0, 2, size).astype(np.uint16)
    return np.where(select, rng.choice([0, 5, -128], size), rng.choice([0, 1, -1], size)).astype(np.int8), select


TABLES = np.stack([table(s0=3000, s1=548, m1=548), table(s0=96, s5=2000, m128=2000), table(s1=4095, m1=1)])
SEGMENTS = [small_segment(150), small_segment(131)]
FAIR = table(s0=2048, s1=2048)[None]
ONES = np.ones(3, np.int8)


def outcome(data, lanes, isa=None):
    """What a reader of these bytes meets: the symbols of `SEGMENTS`, or "corrupt"."""
    try:
        decoder = Decoder(data, TABLES, lanes, isa=isa)
        found = [decoder.decode(select).tolist() for _, select in SEGMENTS]
        decoder.finish()
    except CorruptFile:
        return "corrupt"
    return found


# Damaged streams


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", [1, 4, 64])
def test_every_truncation_is_found(isa, lanes):
    data = encode(SEGMENTS, TABLES, lanes, isa=isa)
    for length in range(len(data)):
        assert outcome(data[:length], lanes, isa) == "corrupt"
    assert outcome(data + b"\0\0", lanes, isa) == "corrupt"
    assert outcome(data + b"\0", lanes, isa) == "corrupt"


@pytest.mark.parametrize("lanes", [1, 64])
def test_every_flipped_bit_is_found_or_changes_a_symbol(lanes):
    data = encode(SEGMENTS, TABLES, lanes)
    right = outcome(data, lanes)
    assert right == [symbols.tolist() for symbols, _ in SEGMENTS]
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert outcome(damaged, lanes) != right


@given(seed=st.integers(0, 2**32), log_lanes=st.integers(0, 6))
def test_noise_is_the_same_noise_everywhere(seed, log_lanes):
    rng, lanes = np.random.default_rng(seed), 1 << log_lanes
    select = rng.integers(0, 3, rng.integers(1, 20 * lanes)).astype(np.uint16)
    data = rng.integers(0, 256, 4 * lanes + 2 * rng.integers(0, len(select) + 1)).astype(np.uint8)
    data[: 4 * lanes].view("<u4")[:] |= 1 << 16
    results = []
    for isa in ISAS:
        try:
            results.append(Decoder(data, TABLES, lanes, isa=isa).decode(select).tolist())
        except CorruptFile:
            results.append("corrupt")
    assert all(result == results[0] for result in results)


# Wrong arguments


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("segment", "arguments", "message"),
    [
        ((np.array([0, 2], np.int8), None), (FAIR, 1), "segment 0 has a symbol whose frequency is 0"),
        ((np.full(64, 2, np.int8), None), (FAIR, 64), "segment 0 has a symbol whose frequency is 0"),
        ((ONES, np.array([0, 1, 0], np.uint16)), (FAIR, 1), "reaches table 1"),
        ((ONES, np.zeros(2, np.uint16)), (FAIR, 1), "2 tables for 3 symbols"),
        ((ONES, np.zeros(3, np.int64)), (FAIR, 1), "select must be a vector of uint16"),
        ((ONES.astype(np.int16), None), (FAIR, 1), "symbols must be a vector of int8"),
        ((ONES[None], None), (FAIR, 1), "symbols must be a vector"),
        ((ONES, None), (FAIR, 3), "power of two"),
        ((ONES, None), (FAIR, 128), "power of two"),
        ((ONES, None), (FAIR, 0), "power of two"),
        ((ONES, None), (FAIR[:, :255], 1), "256"),
        ((ONES, None), (FAIR[:0], 1), "1 to 65536"),
        ((ONES, None), (FAIR.astype(np.int32), 1), "uint16"),
        ((ONES, None), (np.stack([FAIR[0], FAIR[0] + FAIR[0]]), 1), "table 1 sum to 8192"),
        ((ONES, None), (FAIR, 1, Machine(TRELLIS, BY_STATE)), "lead outside"),
        ((ONES, None), (FAIR, 1, Machine(TRELLIS[:2], 0 * BY_STATE[:2])), "lead outside"),
        ((ONES, None), (np.repeat(FAIR, 8, 0), 1, Machine(TRELLIS, BY_STATE[:7])), "lead outside"),
        ((ONES, None), (FAIR, 1, Machine(TRELLIS, np.zeros(8))), "offset must be a vector of uint16"),
        ((ONES, None), (FAIR, 1, Machine(TRELLIS.astype(np.int64), BY_STATE)), "transition must be uint8"),
        ((ONES, np.ones(3, np.uint16)), (np.repeat(FAIR, 8, 0), 1, Machine(TRELLIS, BY_STATE)), "reaches table 8"),
    ],
)
def test_wrong_arguments_of_encode(isa, segment, arguments, message):
    with pytest.raises(ValueError, match=message):
        encode([segment], *arguments, isa=isa)


@pytest.mark.parametrize("isa", ISAS)
def test_wrong_arguments_of_decode(isa):
    data = encode([(ONES, None)], FAIR, 1, isa=isa)
    with pytest.raises(ValueError, match="reaches table 1"):
        Decoder(data, FAIR, 1, isa=isa).decode(np.ones(3, np.uint16))
    with pytest.raises(ValueError, match="select must be a vector of uint16"):
        Decoder(data, FAIR, 1, isa=isa).decode(np.ones(3, np.int32))
    with pytest.raises(ValueError, match="power of two"):
        Decoder(data, FAIR, 5, isa=isa)
    with pytest.raises(CorruptFile, match="no encoder leaves"):
        Decoder(bytes(4), FAIR, 1, isa=isa)


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="'mmx'"):
        encode([], FAIR, 1, isa="mmx")


def test_without_the_compiled_core_the_reference_works_and_says_so_once(monkeypatch):
    expected = encode([(ONES, None)], FAIR, 1)
    native.warn_if_missing.cache_clear()
    monkeypatch.setattr(native, "core", None)
    with pytest.warns(RuntimeWarning, match="without its compiled core"):
        assert encode([(ONES, None)], FAIR, 1) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (Decoder(expected, FAIR, 1).decode(3) == ONES).all()
        assert instruction_sets() == ()
    native.warn_if_missing.cache_clear()
