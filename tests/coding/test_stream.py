"""Tally, Writer and Reader: one set of verbs, and a reader that takes nothing for granted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import codes as made

from waterfill.coding.codes import matrix
from waterfill.coding.stream import FREE, PER_BYTE, Reader, Tally, Writer
from waterfill.errors import BadInput, CorruptFile

INTS = st.lists(st.one_of(st.integers(-20, 20), st.integers(-(2**30), 2**30)), max_size=40)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
VERBS = st.one_of(
    st.tuples(st.just("uint"), st.integers(0, 2**60)),
    st.tuples(st.just("float32"), FLOATS),
    st.tuples(st.just("raw"), st.binary(max_size=9)),
    st.tuples(st.just("ints"), INTS),
    st.tuples(st.just("put"), st.sampled_from(["plain density", "kernels", "packed", "no rows"])),
)


def put(out, verb, value):
    """Say one verb to a Tally or Writer."""
    getattr(out, verb)(made.written(*made.EXAMPLES[value])[0] if verb == "put" else value)


def take(src, verb, value):
    """Take the same back, and compare."""
    if verb == "put":
        codes, kernel = made.EXAMPLES[value]
        assert (matrix.read(src, *codes.shape, kernel) == codes).all()
    elif verb == "ints":
        assert src.ints(len(value)).tolist() == value
    elif verb == "raw":
        assert src.raw(len(value)) == value
    else:
        assert (src.uint(value) if verb == "uint" else src.float32()) == value


@given(st.lists(VERBS, max_size=6))
def test_what_was_written_is_read_and_was_tallied(said):
    tally, out = Tally(), Writer()
    for verb, value in said:
        put(tally, verb, value)
        put(out, verb, value)
    data = out.finish()
    src = Reader(data)
    for verb, value in said:
        take(src, verb, value)
    src.end()
    assert abs(tally.bits - 8 * len(data)) <= 0.01 * tally.bits + 8 * 64 * sum(v == "put" for v, _ in said)


@pytest.mark.parametrize(
    ("value", "data"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (2**63 - 1, "ffffffffffffffff7f")]
)
def test_numbers_are_varints(value, data):
    out = Writer()
    out.uint(value)
    assert out.finish().hex() == data


@pytest.mark.parametrize(
    ("data", "match"), [("", "wanted"), ("80", "wanted"), ("ac02", "limit"), ("8000", "needless"), ("ff" * 11, "ten")]
)
def test_numbers_that_nobody_wrote_are_refused(data, match):
    with pytest.raises(CorruptFile, match=match):
        Reader(bytes.fromhex(data)).uint(299)


def test_a_negative_number_is_a_mistake():
    with pytest.raises(ValueError, match="from 0 up"):
        Writer().uint(-1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(CorruptFile, match="finite"):
        Reader(np.float32(value).tobytes()).float32()


def test_integers_beyond_32_bits_are_refused():
    with pytest.raises(BadInput, match="32 bits"):
        Writer().ints(np.array([0, 0, 1 << 40]))


def test_errors_say_where():
    src = Reader(b"\x01\x02\x03", "conv1.weight")
    src.uint(9)
    with pytest.raises(CorruptFile, match=r"conv1\.weight, byte 1: 5 more bytes wanted, 2 are left"):
        src.raw(5)


def test_bytes_left_over_are_refused():
    src = Reader(b"\x01\x02")
    src.uint(9)
    with pytest.raises(CorruptFile, match="1 bytes are left over"):
        src.end()


@pytest.mark.parametrize("count", [-1, FREE + 3 * PER_BYTE + 1, 1 << 70])
def test_memory_is_earned(count):
    src = Reader(bytes(3))
    assert src.claim(FREE) == FREE
    with pytest.raises(CorruptFile, match="more than they can"):
        src.claim(count)


def test_a_huge_constant_earns_its_memory_by_padding():
    codes = np.full((3000, 5000), 7, dtype=np.int8)
    _, data = made.written(codes)
    assert len(data) == -(-(codes.size - FREE) // PER_BYTE)
    assert (made.read(data, codes.shape) == codes).all()
    for wrong in (data[:-1], data + b"\0", data[:-1] + b"\1"):
        with pytest.raises(CorruptFile):
            made.read(wrong, codes.shape)


def test_huge_repeated_rows_earn_theirs_too():
    codes = np.repeat(made.laplace(2, 5000, 1.0), 1500, axis=0)
    _, data = made.written(codes)
    assert len(data) < 12_000
    assert (made.read(data, codes.shape) == codes).all()


@given(st.binary(max_size=80), st.lists(st.sampled_from(["uint", "float32", "raw", "ints", "put"]), max_size=5))
def test_random_bytes_are_values_or_refused(data, verbs):
    src = Reader(data)
    ask = {
        "uint": lambda: src.uint(1 << 20),
        "float32": src.float32,
        "raw": lambda: src.raw(3),
        "ints": lambda: src.ints(1 << 21),
        "put": lambda: matrix.read(src, 1 << 10, 1 << 10, (2, 2)),
    }
    try:
        for verb in verbs:
            ask[verb]()
        src.end()
    except CorruptFile:
        pass
