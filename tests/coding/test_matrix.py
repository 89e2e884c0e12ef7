"""Matrices of codes as bytes: round trips in every mode, real against ideal size, and what damage does."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import codes as made

from waterfill.coding.codes import matrix, plain
from waterfill.coding.codes.matrix import Repeated
from waterfill.coding.codes.modeled import Modeled
from waterfill.coding.codes.plain import Constant, Histogram, Packed
from waterfill.errors import BadInput, CorruptFile

KERNELS = [(), (1,), (5,), (3, 3), (3, 3, 3), (1, 3), (2, 1, 2)]
SMALL = [name for name in made.EXAMPLES if name not in ("row and channel scales", "histogram", "cubes")]


def assert_round_trip(codes, kernel=()):
    """Returns the plan and the bytes."""
    plan, data = made.written(codes, kernel)
    found = made.read(data, codes.shape, kernel)
    assert found.dtype == matrix.narrow(codes).dtype
    assert (found == codes).all()
    assert abs(made.tallied(plan) - 8 * len(data)) <= 0.01 * 8 * len(data) + 8 * 64
    return plan, data


@given(
    st.integers(1, 12),
    st.integers(1, 6),
    st.sampled_from(KERNELS),
    st.sampled_from([0.05, 0.4, 3, 40, 1000, 1e5, 1e6]),
    st.integers(0, 2**32),
)
def test_round_trip(rows, channels, kernel, scale, seed):
    rng = np.random.default_rng(seed)
    shape = (rows, channels * int(np.prod(kernel)))
    codes = rng.laplace(size=shape) * scale * np.exp2(rng.normal(size=(rows, 1)) * rng.integers(0, 3))
    codes += rng.integers(-1, 2) * 5 * scale
    assert_round_trip(np.clip(np.rint(codes), 1 - plain.LIMIT, plain.LIMIT - 1).astype(np.int64), kernel)


@pytest.mark.parametrize("name", made.EXAMPLES)
def test_examples_come_back(name):
    assert_round_trip(*made.EXAMPLES[name])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("constant", Constant),
        ("no rows", Constant),
        ("kernels", Modeled),
        ("histogram", Histogram),
        ("packed", Packed),
        ("repeated", Repeated),
        ("raw low bits", Modeled),
        ("escapes", Modeled),
    ],
)
def test_every_mode_is_reached(name, kind):
    assert type(matrix.plan(*made.EXAMPLES[name])) is kind


@pytest.mark.parametrize("extreme", [127, -128, 128, -129, 32767, -32768, 40000, plain.LIMIT - 1, 1 - plain.LIMIT])
@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_extreme_codes(extreme, kernel):
    for codes in (made.laplace(20, 36, 1.0), made.kernels(20, 4, 50.0)):
        codes[3, 5] = codes[19, 35] = extreme
        assert_round_trip(codes, kernel)


def test_an_outlying_row_and_column_do_not_push_the_scales_too_far():
    codes = made.laplace(64, 64, 0.6).astype(np.float64)
    codes[5] *= 1e6
    codes[:, 7] *= 1e6
    assert_round_trip(np.clip(codes, 1 - plain.LIMIT, plain.LIMIT - 1).astype(np.int32))


def test_alternating_extremes_keep_means_within_32_bits():
    signs = np.where(np.arange(90) % 2, 1, -1) * (plain.LIMIT - 1)
    assert_round_trip(np.tile(signs, (12, 1)) - np.arange(12)[:, None] * np.sign(signs), (3, 3))


@pytest.mark.parametrize("codes", [made.laplace(1, 3000, 2.0), made.laplace(3000, 1, 2.0), made.scaled(30, 1, 9.0)])
def test_one_row_and_one_column(codes):
    assert_round_trip(codes)


@pytest.mark.parametrize("make", [made.laplace, made.scaled])
def test_large_matrices_are_written_in_chunks(make):
    plan, _ = assert_round_trip(make(2100, 1000, 2.0))
    assert plan.lanes == 64


def test_large_kernels_are_thinned_for_the_search_only():
    assert_round_trip(made.kernels(256, 256, 3.0), (3, 3))


def test_a_large_histogram_is_written_in_chunks():
    plan, _ = assert_round_trip(made.two_humps(2100, 1000))
    assert type(plan) is Histogram


@pytest.mark.parametrize("name", ["plain density", "kernels", "row and channel scales"])
def test_the_dtype_of_the_input_does_not_matter(name):
    codes, kernel = made.EXAMPLES[name]
    _, expected = made.written(codes, kernel)
    for dtype in (np.int8, np.int16, np.int64):
        assert made.written(codes.astype(dtype), kernel)[1] == expected
    assert made.written(np.asfortranarray(codes), kernel)[1] == expected


def test_columns_that_a_kernel_does_not_divide_are_coded_without_it():
    assert matrix.spatial(10, (3,)) == ()
    assert matrix.spatial(9, (1, 3)) == (3,)
    assert matrix.spatial(9, (-3, -3)) == matrix.spatial(9, (0, 3)) == matrix.spatial(9, ()) == ()
    assert matrix.spatial(1 << 62, (1 << 31, 1 << 31)) == ()
    assert_round_trip(made.laplace(6, 10, 2.0), (3,))


def test_a_repeated_row_costs_a_pointer():
    codes = made.repeated(400, 50, 40)
    assert made.written(codes)[0].bits < 0.25 * made.written(made.laplace(400, 50, 3.0))[0].bits


@pytest.mark.parametrize("codes", [np.array([[plain.LIMIT]]), np.array([[0, -plain.LIMIT]]), np.array([[2**40, 1]])])
def test_codes_beyond_24_bits_are_refused(codes):
    with pytest.raises(BadInput, match="24 bits"):
        matrix.plan(codes)


@pytest.mark.parametrize(("codes", "match"), [(np.zeros((2, 2)), "integers"), (np.zeros(3, np.int8), "dimensions")])
def test_what_is_no_matrix_of_integers_is_refused(codes, match):
    with pytest.raises(BadInput, match=match):
        matrix.plan(codes)


@pytest.mark.parametrize("name", SMALL)
def test_every_truncation_is_refused(name):
    codes, kernel = made.EXAMPLES[name]
    _, data = made.written(codes, kernel)
    for length in range(len(data)):
        with pytest.raises(CorruptFile):
            made.read(data[:length], codes.shape, kernel)


@pytest.mark.parametrize("name", SMALL)
def test_every_flipped_bit_is_refused_or_gives_other_codes(name):
    codes, kernel = made.EXAMPLES[name]
    _, data = made.written(codes, kernel)
    for bit in range(0, 8 * len(data), 1 if len(data) < 100 else 23):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = made.read(bytes(damaged), codes.shape, kernel)
        except CorruptFile:
            continue
        assert found.shape == codes.shape
        assert np.abs(found.astype(np.int64)).max(initial=0) < plain.LIMIT


@given(st.integers(0, 6), st.integers(0, 6), st.sampled_from(KERNELS), st.integers(0, 40), st.binary(max_size=60))
def test_bytes_that_nobody_wrote_are_refused_or_are_codes(rows, channels, kernel, first, rest):
    shape = (rows, channels * int(np.prod(kernel)))
    with contextlib.suppress(CorruptFile):
        assert made.read(bytes([first]) + rest, shape, kernel).shape == shape


@given(st.sampled_from(SMALL), st.data())
def test_overwritten_bytes_are_refused_or_are_codes(name, data):
    codes, kernel = made.EXAMPLES[name]
    damaged = bytearray(made.written(codes, kernel)[1])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, min(len(damaged), 40) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CorruptFile):
        assert made.read(bytes(damaged), codes.shape, kernel).shape == codes.shape


def test_repeated_rows_inside_repeated_rows_are_refused():
    repeated = bytes([4, 8, 0, 0, 0])  # eight distinct rows of eight, in a vector of eight zeros
    with pytest.raises(CorruptFile, match="inside"):
        made.read(repeated * 100, (8, 8))


@pytest.mark.parametrize("shape", [(1 << 40, 1 << 40), (-2, -3), (-1, 4), (1 << 62, 2)])
def test_shapes_that_the_bytes_cannot_fill_are_refused_at_once(shape):
    with pytest.raises(CorruptFile):
        made.read(bytes(30), shape)
