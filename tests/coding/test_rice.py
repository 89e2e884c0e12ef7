"""Rice coded integer vectors: round trips, known bits, and what damage does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterfill.coding import rice
from waterfill.errors import BadInput, CorruptFile

FOLDED = st.lists(st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1)), max_size=80)


@given(st.integers(-(2**62), 2**62 - 1))
def test_zigzag_numbers_the_integers_by_size(value):
    folded = rice.zigzag(np.array([value]))
    assert folded[0] == rice.fold(value) == (2 * value if value >= 0 else -2 * value - 1)
    assert rice.unzigzag(folded)[0] == rice.unfold(rice.fold(value)) == value


@given(FOLDED, st.integers(0, 23), st.binary(max_size=3))
def test_what_was_packed_is_unpacked_and_its_length_known(values, k, tail):
    folded = np.array(values, dtype=np.int64)
    data = rice.pack(folded, k)
    assert len(data) == -(-rice.rice_bits(folded, k) // 8)
    found, used = rice.unpack(np.frombuffer(data + tail, dtype=np.uint8), len(values), k)
    assert used == len(data)
    assert found.tolist() == values


def test_the_bits_are_those_of_the_specification():
    assert rice.pack(np.array([0, 5]), 1) == bytes([0b01100100])  # 0, 110; then 0, 1
    long = rice.pack(np.array([rice.LONG, 1]), 0)  # 24 ones and a zero, 10; then 32 bits
    assert "".join(f"{byte:08b}" for byte in long) == "1" * 24 + "0" + "10" + f"{24:032b}" + "00000"


def test_the_best_parameter_is_the_best():
    folded = rice.zigzag(np.rint(np.random.default_rng(0).laplace(size=300) * 30).astype(np.int64))
    best = rice.best_parameter(folded)
    assert rice.rice_bits(folded, best) == min(rice.rice_bits(folded, k) for k in range(rice.PARAMETERS))
    assert 2 <= best <= 7


def test_many_values_come_back_in_pieces():
    folded = np.random.default_rng(0).geometric(0.05, 200_000)
    found, _ = rice.unpack(np.frombuffer(rice.pack(folded, 3), dtype=np.uint8), len(folded), 3)
    assert (found == folded).all()


@given(FOLDED.filter(len), st.integers(0, 23), st.data())
def test_truncated_vectors_are_refused(values, k, data):
    packed = rice.pack(np.array(values, dtype=np.int64), k)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(CorruptFile):
        rice.unpack(np.frombuffer(packed[:cut], dtype=np.uint8), len(values), k)


def test_a_count_that_no_bytes_back_costs_nothing():
    with pytest.raises(CorruptFile, match="end early"):
        rice.unpack(np.zeros(4, dtype=np.uint8), 1 << 60, 0)


def test_values_beyond_32_bits_are_refused():
    with pytest.raises(BadInput, match="32 bits"):
        rice.pack(np.array([0, 1 << 32]), 4)


@pytest.mark.parametrize(("values", "center"), [([], 0), ([7], 7), ([1, 9], 1), ([5, -3, 4], 4)])
def test_the_center_is_the_lower_median(values, center):
    assert rice.center_of(np.array(values, dtype=np.int64)) == center
