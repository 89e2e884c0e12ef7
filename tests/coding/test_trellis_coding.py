"""Codes along a trellis: the code has the distances of its table, and its codes come back at the size they should."""

import contextlib
import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import codes as made

from waterfill.coding import chunking, density, native, rans, trellis
from waterfill.coding.codes import matrix
from waterfill.coding.codes.plain import Constant
from waterfill.coding.model import fitting, path_means
from waterfill.coding.model.density_model import center
from waterfill.errors import CorruptFile

KERNELS = [(), (3,), (2, 2), (3, 3)]


def assert_round_trip(codes, kernel, states):
    """Returns the plan and the bytes."""
    plan, data = made.written(codes, kernel, states)
    found = made.read(data, codes.shape, kernel)
    assert found.dtype == matrix.narrow(codes).dtype
    assert (found == codes).all()
    return plan, data


# The code


def shortest_detour(code):
    """The least sum of squared distances between two paths that part and meet again, in squared steps.

    Steps between codes of equal parity and another path bit are 2, between those of different parities 1.
    """
    seen, heap = set(), [(4, int(code.transition[0, 1]))]
    while heap[0][1]:
        distance, state = heapq.heappop(heap)
        if state not in seen:
            seen.add(state)
            for path in (0, 1):
                step = 1 if code.parity[state] else 4 * path
                heapq.heappush(heap, (distance + step, int(code.transition[state, path])))
    return heap[0][0]


@pytest.mark.parametrize(("states", "distance"), [(4, 9), (8, 10), (16, 11), (32, 13), (64, 14), (128, 16), (256, 16)])
def test_free_distances_are_those_of_the_table(states, distance):
    assert min(shortest_detour(trellis.trellis(states)), 4 * 4) == distance  # 4 steps: a detour of one code


@pytest.mark.parametrize("states", trellis.STATES)
def test_every_state_is_reached_from_two_and_both_parities_follow_one_another(states):
    code = trellis.trellis(states)
    assert (np.bincount(code.transition.ravel(), minlength=states) == 2).all()
    assert code.parity.sum() == states // 2
    assert code.parity[0] == code.transition[0, 0] == 0


@pytest.mark.parametrize("states", [0, 1, 2, 6, 512, -8])
def test_other_numbers_of_states_are_refused(states):
    with pytest.raises(ValueError, match="trellis has 4, 8"):
        trellis.trellis(states)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 9))
def test_paths_divide_the_channels_and_cost_little(rows, channels, positions):
    lanes = trellis.lanes(rows, channels, positions)
    assert lanes in (1, 2, 4, 8, 16, 32, 64)
    assert channels % lanes == 0
    entries = min(rows, chunking.rows_per_chunk(channels * positions)) * channels * positions
    assert lanes == 1 or 2 * lanes <= 0.003 * entries / 4  # bytes, at two bits a code


def test_the_order_of_the_paths():
    codes = np.arange(2 * 4 * 2).reshape(2, 4, 2)
    order = trellis.along(codes, 2)
    assert order.tolist() == [[0, 2, 8, 10, 4, 6, 12, 14], [1, 3, 9, 11, 5, 7, 13, 15]]
    assert (trellis.across(order, 2, 2) == codes).all()


# What is coded of a code


@given(st.integers(-(10**6), 10**6))
def test_phases_of_the_two_parities_mirror_each_other(mean):
    even, odd = path_means.half_mean(np.array(mean)), path_means.half_mean(np.array(mean)) - 4
    assert abs(center(even)[1]) == 4 - abs(center(odd)[1])


def test_residuals_without_taps_are_halves():
    codes = np.arange(-6, 7).reshape(1, -1, 1)
    residual, phases = path_means.residuals(codes, (), None)
    assert residual.ravel().tolist() == [-3, 3, -2, 2, -1, 1, 0, 0, 1, -1, 2, -2, 3]
    assert phases.ravel().tolist() == [0, 4] * 6 + [0]


@pytest.mark.parametrize("name", made.TRELLISES)
def test_the_codes_of_a_path_and_no_other_parity_are_accepted(name):
    codes, kernel, states = made.TRELLISES[name]
    cube = codes.reshape(len(codes), -1, int(np.prod(kernel)))
    trellis.check(cube, states)
    for at in np.random.default_rng(0).integers(0, codes.size, 5):
        wrong = cube.copy()
        wrong.flat[at] ^= 1
        with pytest.raises(ValueError, match=f"leave the {states}-state trellis"):
            trellis.check(wrong, states)
        with pytest.raises(ValueError, match="leave the"):
            matrix.plan(wrong.reshape(codes.shape), kernel, states)


def test_predicted_halves_are_small():
    cube = made.trellised(30, 16, 20.0, 8, (3, 3)).reshape(30, 16, 9)
    taps = fitting.fit(cube, (3, 3), 8).taps
    assert taps is not None
    assert np.abs(path_means.residuals(cube, (3, 3), taps)[0]).mean() < 0.7 * np.abs(cube // 2).mean()


# Round trips


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from(KERNELS),
    st.sampled_from([0.1, 0.6, 3, 30, 1000, 1e6]),
    st.sampled_from(trellis.STATES),
)
def test_round_trip(rows, channels, kernel, scale, states):
    assert_round_trip(made.trellised(rows, channels, scale, states, kernel), kernel, states)


@pytest.mark.parametrize("name", made.TRELLISES)
def test_examples_come_back_at_the_planned_size(name):
    plan, data = assert_round_trip(*made.TRELLISES[name])
    assert type(plan).__name__ == "Trellised"
    assert abs(made.tallied(plan) - 8 * len(data)) <= 0.01 * 8 * len(data) + 8 * 16


@pytest.mark.parametrize(
    "extreme", [126, 127, 128, 252, -253, 254, 255, -256, 40000, chunking.LIMIT - 1, 1 - chunking.LIMIT]
)
def test_extreme_codes(extreme):
    code, state, codes = trellis.trellis(4), 0, []
    for i in range(40):  # the outlier comes once, where the parity is its own
        parity = int(code.parity[state])
        half = extreme >> 1 if i >= 20 and parity == extreme & 1 and extreme not in codes else i % 3 - 1
        codes.append(2 * half + parity)
        state = int(code.transition[state, half & 1])
    assert extreme in codes
    assert_round_trip(np.array(codes)[:, None], (), 4)


def test_large_matrices_are_written_in_chunks_of_64_paths():
    codes = np.concatenate([made.trellised(16, 1 << 16, 1.0, 8), made.trellised(8, 1 << 16, 1.0, 8)])
    plan, _ = assert_round_trip(codes, (), 8)
    assert plan.lanes == 64


def test_equal_codes_need_no_trellis():
    assert type(matrix.plan(np.zeros((30, 40), np.int32), (), 8)) is Constant


def test_halves_cost_their_entropy():
    codes = made.trellised(300, 200, 2.0, 8)  # the even ones as often as the odd ones
    entropy = 0.0
    for parity in (0, 1):
        count = np.unique(codes[codes % 2 == parity], return_counts=True)[1]
        entropy -= (count * np.log2(count / count.sum())).sum()
    assert made.written(codes, (), 8)[0].bits < 1.005 * entropy


@pytest.mark.parametrize("scale", [0.6, 2.0])
def test_scales_are_those_of_halves(scale):
    # Wherever the codes come from: a model may be wanted before any path is found.
    rng = np.random.default_rng(0)
    deviation = scale * np.array([1.0, 4.0] * 50)
    parity = rng.integers(0, 2, (400, 100, 1))
    half = np.rint(rng.normal(size=parity.shape) * deviation[:, None] - parity / 2)
    model = fitting.fit((2 * half + parity).astype(np.int32), (), 8)
    found = 2.0 ** ((model.base + 2 * model.channels - density.SCALE_ZERO) / 8)
    assert np.median(found / deviation) == pytest.approx(1, rel=0.1)
    assert np.abs(np.log2(found / deviation)).max() < 0.5


@pytest.mark.parametrize("name", ["trellis", "trellis of kernels", "trellis with escapes", "fine trellis"])
def test_every_implementation_writes_and_reads_the_same_bytes(name, monkeypatch):
    codes, kernel, states = made.TRELLISES[name]
    plan, data = made.written(codes, kernel, states)
    for isa in rans.instruction_sets():
        monkeypatch.setattr(rans, "instruction_sets", lambda isa=isa: (isa,))
        assert made.written(codes, kernel, states)[1] == data
        assert (made.read(data, codes.shape, kernel) == codes).all()
    monkeypatch.undo()
    monkeypatch.setattr(native, "core", None)
    slow_plan, slow_data = made.written(codes, kernel, states)
    assert slow_plan.bits == plan.bits
    assert slow_data == data
    assert (made.read(data, codes.shape, kernel) == codes).all()


# Damage


@pytest.mark.parametrize("name", ["trellis", "trellis with escapes", "trellis of far kernels"])
def test_truncations_and_flipped_bits_are_refused_or_give_other_codes(name):
    codes, kernel, states = made.TRELLISES[name]
    _, data = made.written(codes, kernel, states)
    for length in range(0, len(data), 1 if len(data) < 200 else 7):
        with pytest.raises(CorruptFile):
            made.read(data[:length], codes.shape, kernel)
    for bit in range(0, 8 * len(data), 5):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(CorruptFile):
            found = made.read(bytes(damaged), codes.shape, kernel)
            assert found.shape == codes.shape
            assert np.abs(found.astype(np.int64)).max() < chunking.LIMIT


@given(st.integers(1, 6), st.integers(1, 9), st.sampled_from(KERNELS), st.integers(0, 6), st.binary(max_size=60))
def test_bytes_that_nobody_wrote_are_refused_or_are_codes(rows, channels, kernel, lanes, rest):
    shape = (rows, channels * int(np.prod(kernel)))
    with contextlib.suppress(CorruptFile):
        assert made.read(bytes([5 + 8 * lanes]) + rest, shape, kernel).shape == shape


@pytest.mark.parametrize(("first", "states"), [(5, 0), (5, 1), (5 + 8, 3)], ids=["one", "two", "two lanes"])
def test_no_such_trellis(first, states):
    with pytest.raises(CorruptFile, match="a trellis of"):
        made.read(bytes([first, states]) + bytes(100), (6, 5))
