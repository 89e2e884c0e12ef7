"""The search for product-scale densities: it finds what is there, and does not depend on the compiled core."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import codes as made

from waterfill.coding import density, native
from waterfill.coding.density_tables import SHAPES
from waterfill.coding.model import fitting
from waterfill.coding.model.costs import COST_UNIT, Coded, axis_costs
from waterfill.coding.model.density_model import MOST_TAPS, center, neighbors, predict, residuals


def cube(codes, positions=1):
    return codes.reshape(len(codes), -1, positions)


def message(codes, kernel=()):
    """Bits of codes [rows, channels, positions] with the model that was found."""
    model = fitting.fit(codes, kernel)
    return fitting.total_bits(codes, kernel, model) + fitting.side_bits(model)


def entropy(codes):
    """Empirical entropy of all codes together, bits."""
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / codes.size)).sum())


def test_independent_codes_cost_their_entropy():
    codes = made.laplace(300, 200, 2.0)
    assert message(cube(codes)) < entropy(codes) * 1.005


@pytest.mark.parametrize(("exponent", "draw"), [(1.0, "laplace"), (2.0, "normal")])
def test_the_shape_is_recognized(exponent, draw):
    codes = np.rint(getattr(np.random.default_rng(0), draw)(size=(300, 200)) * 4).astype(np.int32)
    model = fitting.fit(cube(codes), ())
    assert abs(SHAPES[model.shape] - exponent) <= 0.21
    deviation = 2.0 ** ((model.base - density.SCALE_ZERO) / 8)
    assert deviation == pytest.approx(codes.std(), rel=0.1)
    assert model.rows is None or not model.rows.any()


def test_scales_of_rows_and_columns_are_found_to_a_quarter_octave():
    rng = np.random.default_rng(0)
    rows, cols = rng.normal(size=200), rng.normal(size=300)
    codes = np.rint(rng.normal(size=(200, 300)) * 6 * np.exp2(rows[:, None] + cols)).astype(np.int32)
    model = fitting.fit(cube(codes), ())
    assert np.abs(model.rows / 4 - rows - np.median(model.rows / 4 - rows)).max() < 0.4
    assert np.abs(model.channels / 4 - cols - np.median(model.channels / 4 - cols)).max() < 0.4
    assert message(cube(codes)) < 0.93 * entropy(codes)


def test_factors_that_do_not_pay_are_left_out():
    model = fitting.fit(cube(made.laplace(40, 8, 2.0)), ())
    assert model.rows is None


def test_a_large_matrix_is_searched_on_samples_at_little_loss():
    rng = np.random.default_rng(0)
    rows, cols = np.rint(4 * rng.normal(size=1500)) / 4, np.rint(4 * rng.normal(size=1000)) / 4
    codes = np.rint(rng.normal(size=(1500, 1000)) * 6 * np.exp2(rows[:, None] + cols)).astype(np.int32)
    exact = fitting.DensityModel(
        SHAPES.index(2.0), 60, *(np.rint(4 * v).astype(np.int64) for v in (rows, cols)), np.zeros(1, np.int64), None
    )
    assert message(cube(codes)) < 1.003 * (fitting.total_bits(cube(codes), (), exact) + fitting.side_bits(exact))


def test_prediction_pays_where_kernels_are_smooth():
    smooth = cube(made.kernels(48, 32, 3.0), 9)
    shuffled = np.random.default_rng(0).permuted(smooth, axis=0)
    assert fitting.fit(smooth, (3, 3)).taps is not None
    assert fitting.fit(shuffled, (3, 3)).taps is None
    assert message(smooth, (3, 3)) < 0.75 * message(shuffled, (3, 3))


def test_scales_of_positions_are_found():
    rng = np.random.default_rng(0)
    wanted = np.array([1, 2, 1, 2, 8, 2, 1, 2, 1])
    model = fitting.fit(np.rint(rng.normal(size=(64, 64, 9)) * 2 * wanted).astype(np.int32), (3, 3))
    found = np.exp2((model.positions - model.positions[0]) / 8)
    assert found == pytest.approx(wanted, rel=0.15)


def test_neighbors_are_the_nearest_earlier_positions():
    assert [near.tolist() for near in neighbors((3, 3))] == [
        *([], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]),
        *([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6, 7]),
    ]
    assert neighbors((20,))[19].tolist() == list(range(11, 19))
    assert neighbors((5, 5))[24].tolist() == [12, 13, 14, 17, 18, 19, 22, 23]


@given(st.integers(-(2**30), 2**30))
def test_a_mean_is_a_whole_and_a_phase(mean):
    whole, phase = center(np.array(mean))
    assert -4 <= phase <= 3
    assert 8 * whole + phase == mean


def test_a_mean_is_the_sum_of_neighbors_times_taps_in_eighths():
    earlier = [np.array([[1]], dtype=np.int32), np.array([[-7]], dtype=np.int32), np.array([[5]], dtype=np.int32)]
    assert predict(earlier, np.array([0, 2]), np.array([3, -4])).tolist() == [[(3 - 20) >> 1]]


@given(st.sampled_from([(3, 3), (5,), (2, 2, 2)]), st.integers(0, 2**32), st.floats(0.5, 5000))
def test_residuals_give_the_codes_back(kernel, seed, scale):
    rng = np.random.default_rng(seed)
    codes = np.rint(rng.normal(size=(4, 3, int(np.prod(kernel)))) * scale).astype(np.int32)
    near = neighbors(kernel)
    taps = rng.integers(-MOST_TAPS // 8, MOST_TAPS // 8, sum(map(len, near)))
    residual, phases = residuals(codes, kernel, taps)
    planes, start = [], 0
    for p, before in enumerate(near):
        mean = predict(planes, before, taps[start : start + len(before)]) if p else np.zeros((4, 3), np.int32)
        whole, phase = center(mean)
        assert (np.abs(phase) == phases[..., p]).all()
        planes.append(np.where(phase < 0, whole - residual[..., p], whole + residual[..., p]))
        start += len(before)
    assert (np.stack(planes, axis=2) == codes).all()


@given(st.integers(0, 2), st.integers(0, 2**32), st.booleans(), st.sampled_from([2, 200, 10**6]))
def test_compiled_costs_are_those_of_numpy(axis, seed, predicted, size):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 7, 3))
    residual = rng.integers(-size, size, shape).astype(np.int32)
    phases = rng.integers(0, 5, shape).astype(np.uint8) if predicted else np.zeros((0, 0, 0), np.uint8)
    factors = tuple(rng.integers(-40, 140, n).astype(np.int32) for n in shape)
    arguments = Coded(residual, phases), factors, int(rng.integers(len(SHAPES))), np.array([-3, 0, 2]), axis
    found = axis_costs(*arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "core", None)
        assert (axis_costs(*arguments) == found).all()


@pytest.mark.parametrize("name", ["plain density", "row and channel scales", "kernels", "raw low bits", "escapes"])
def test_without_the_compiled_core_the_bytes_are_the_same(name, monkeypatch):
    codes, kernel = made.EXAMPLES[name]
    plan, data = made.written(codes, kernel)
    monkeypatch.setattr(native, "core", None)
    slow_plan, slow_data = made.written(codes, kernel)
    assert slow_plan.bits == plan.bits
    assert slow_data == data
    assert (made.read(data, codes.shape, kernel) == codes).all()


def test_costs_are_the_bits_of_the_tables():
    coded = Coded(np.array([[[0], [3]]], dtype=np.int32), np.zeros((0, 0, 0), np.uint8))
    factors = np.array([40], np.int32), np.array([0, 8], np.int32), np.zeros(1, np.int32)
    freq = density.family(3)[40, 0, 0], density.family(3)[48, 0, 3]
    expected = [12 - np.log2(f) for f in freq]
    assert axis_costs(coded, factors, 3, np.zeros(1), 1)[0] / COST_UNIT == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("offset", [-0.4, 0.0, 0.3])
def test_how_far_codes_lie_from_the_scale_of_their_base(offset):
    random = np.random.default_rng(0)
    codes = np.rint(
        random.normal(size=(400, 500, 1)) * 12 * 2 ** (np.array([0, offset]) / 8)[:, None, None, None]
    ).astype(np.int32)
    flat = [replace(fitting.fit(c, ()), rows=None, channels=None) for c in codes]
    moved = fitting.base_offset(codes[1], flat[0]) - fitting.base_offset(codes[0], flat[0])
    assert flat[0].flat and moved == pytest.approx(offset, abs=0.1)


@given(st.integers(0, 2**32), st.integers(0, 2), st.booleans(), st.sampled_from([0.3, 3, 300, 10**5]))
def test_the_compiled_search_takes_the_steps_of_numpy(seed, form, along, size):
    rng = np.random.default_rng(seed)
    kernel = ((), (3,), (2, 2))[form]
    shape = (*rng.integers(1, 9, 2), int(np.prod(kernel, dtype=int)))
    spread = size * 2.0 ** rng.normal(size=(shape[0], 1, 1))
    codes = np.rint(rng.laplace(size=shape) * spread).astype(np.int32)
    states = 8 if along else 0
    found = fitting.fit(codes, kernel, states)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "core", None)
        expected = fitting.fit(codes, kernel, states)
    assert (found.shape, found.base) == (expected.shape, expected.base)
    for axis in ("rows", "channels", "positions", "taps"):
        assert np.array_equal(getattr(found, axis), getattr(expected, axis))


@pytest.mark.parametrize("shape", [(3, 1500, 4), (1500, 3, 4), (2, 2, 1500), (1100, 1, 9)])
def test_sums_of_many_costs_are_those_of_numpy(shape):
    rng = np.random.default_rng(0)
    coded = Coded(rng.integers(-200, 200, shape).astype(np.int32), np.zeros((0, 0, 0), np.uint8))
    factors = tuple(rng.integers(0, 20, n).astype(np.int32) for n in shape)
    for axis in range(3):
        found = axis_costs(coded, factors, 3, np.array([-2, 0, 1]), axis)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "core", None)
            assert (axis_costs(coded, factors, 3, np.array([-2, 0, 1]), axis) == found).all()
