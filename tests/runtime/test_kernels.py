"""Products of compressed weights: the compiled core, the reference and the dense product agree, on all shapes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.threads import failing

from waterfill.coding import native
from waterfill.errors import BadInput
from waterfill.part import Codes
from waterfill.runtime import layout, operators, reference
from waterfill.runtime.leaves import CodesTerm, EntriesTerm
from waterfill.runtime.matrix import restored_by_torch

SETS = native.core.product_sets() if native.core is not None else []


@st.composite
def matrices(draw: st.DrawFn) -> reference.Arrays:
    """A matrix of codes, with or without groups, zero points, column scales and corrections."""
    bits = draw(st.sampled_from(layout.WIDTHS))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    rows, groups = draw(st.integers(1, 40)), draw(st.integers(1, 3))
    group = draw(st.integers(1, 300)) if groups == 1 else 128 * draw(st.integers(1, 2))
    cols = group if groups == 1 else group * groups - draw(st.integers(0, 100))
    codes = rng.integers(-(1 << bits - 1), 1 << bits - 1, (rows, cols))
    scales = rng.normal(size=(rows, groups)).astype(np.float32)
    zeros = rng.integers(0, 1 << bits, (rows, groups)).astype(np.int16) if draw(st.booleans()) else None
    columns = rng.lognormal(size=cols).astype(np.float32) if draw(st.booleans()) else None
    corrections = None
    if groups == 1 and draw(st.booleans()):
        places = np.flatnonzero(rng.random(rows * cols) < 0.1)
        starts = np.concatenate([[0], np.cumsum(np.bincount(places // cols, minlength=rows))])
        values = rng.integers(-100_000, 100_000, len(places)) // draw(st.sampled_from([1, 1_000, 100_000]))
        corrections = [v.astype(np.int32) for v in (starts, places % cols, values)]
    return reference.Arrays(layout.packed(codes, bits), scales, zeros, columns, corrections, group, cols, bits)


def run(x: np.ndarray, arrays: reference.Arrays, size: int, isa: str, threads: int = 2) -> np.ndarray:
    """The product by the compiled core."""
    y = np.full((len(x), len(arrays.data)), np.nan, np.float32)
    given = (x, y, arrays.data, arrays.scales, arrays.zeros, arrays.columns, *(arrays.corrections or (None,) * 3))
    places = [0 if v is None else v.ctypes.data for v in given]
    sizes = [len(x), len(arrays.data), arrays.cols, arrays.scales.shape[1], arrays.group]
    native.core.codes_product(places, sizes, arrays.bits, size, threads, isa)
    return y


@given(matrices(), st.integers(1, 6), st.integers(0, 1 << 32))
def test_an_output_is_as_near_as_the_docstring_says(arrays: reference.Arrays, batch: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(batch, arrays.cols)).astype(np.float32)
    matrix = reference.restored(arrays).astype(np.float64)
    columns = np.ones(arrays.cols) if arrays.columns is None else arrays.columns.astype(np.float64)
    exact = x.astype(np.float64) @ matrix.T
    for size in reference.LARGEST:
        unit = np.abs(x * columns).max(1) / reference.LARGEST[size]
        bound = 0.5 * unit[:, None] * np.abs(matrix / columns).sum(1)
        rounding = 1e-6 * (np.abs(x) @ np.abs(matrix).T) + 1e-30
        assert (np.abs(reference.product(x, arrays, size) - exact) <= bound + rounding).all()


@pytest.mark.skipif(not SETS, reason="the compiled core was not built")
@given(matrices(), st.integers(1, 6), st.integers(0, 1 << 32))
def test_every_instruction_set_does_what_the_reference_does(arrays: reference.Arrays, batch: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(batch, arrays.cols)).astype(np.float32)
    for size in reference.LARGEST:
        wanted = reference.product(x, arrays, size)
        for isa in SETS:
            assert np.array_equal(run(x, arrays, size, isa), wanted)


@pytest.mark.skipif(not SETS, reason="the compiled core was not built")
@pytest.mark.parametrize("bits", layout.WIDTHS)
@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("cols", [1 << 15, 40_000])
def test_extreme_codes_and_inputs_do_not_overflow(bits: int, isa: str, cols: int) -> None:
    codes = np.stack([np.full(cols, (1 << bits - 1) - 1), np.full(cols, -(1 << bits - 1))] * 3)
    scales = np.ones((6, 1), np.float32)
    arrays = reference.Arrays(layout.packed(codes, bits), scales, None, None, None, cols, cols, bits)
    x = np.stack([np.ones(cols), -np.ones(cols), np.zeros(cols)]).astype(np.float32)
    for size in reference.LARGEST:
        assert np.array_equal(run(x, arrays, size, isa), (x @ codes.T).astype(np.float32))


@given(matrices())
def test_packed_codes_are_read_back(arrays: reference.Arrays) -> None:
    codes = layout.unpacked(arrays.data, arrays.cols, arrays.bits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "core", None)
        assert np.array_equal(layout.unpacked(arrays.data, arrays.cols, arrays.bits), codes)
        assert np.array_equal(layout.packed(codes, arrays.bits), arrays.data)
    assert np.array_equal(layout.packed(codes, arrays.bits), arrays.data)


@given(matrices(), st.integers(1, 3))
def test_other_devices_restore_the_same_matrix(arrays: reference.Arrays, seed: int) -> None:
    """By the torch form, which runs on a CPU as well."""
    tensors = [None if v is None else torch.from_numpy(v) for v in (arrays.data, arrays.scales, arrays.zeros)]
    columns = None if arrays.columns is None else torch.from_numpy(arrays.columns)
    corrections = [torch.from_numpy(v) for v in arrays.corrections or ()]
    matrix = operators.Matrix(*tensors, columns, corrections, arrays.bits, arrays.group, arrays.cols)
    wanted = torch.from_numpy(reference.restored(arrays))
    assert torch.equal(restored_by_torch(matrix), wanted)
    rows = torch.randint(0, len(arrays.data), (5,), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(operators.codes_rows(rows, matrix), wanted[rows])


@given(st.integers(1, 30), st.integers(1, 90), st.integers(1, 20), st.floats(0, 0.3), st.integers(0, 1 << 32))
def test_sparse_products(rows: int, cols: int, batch: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, cols)).astype(np.float32) * (rng.random((rows, cols)) < share)
    term = EntriesTerm(torch.from_numpy(values))
    x = torch.from_numpy(rng.normal(size=(batch, cols)).astype(np.float32))
    wanted = reference.entries_product(x.numpy(), term.starts.numpy(), term.where.numpy(), term.values.numpy())
    assert np.array_equal(term(x).numpy(), wanted)
    assert np.allclose(wanted, x.double().numpy() @ values.astype(np.float64).T, atol=1e-4)
    assert np.array_equal(term.restored().numpy(), values)


def test_sparse_products_of_more_columns_than_16_bits_tell_apart() -> None:
    values = torch.zeros(3, 70_000)
    values[1, 69_999], values[2, 65_536] = 2.0, 3.0
    wide, narrow = EntriesTerm(values), EntriesTerm(values[:, 4464:].contiguous())
    assert (wide.where.dtype, narrow.where.dtype) == (torch.int32, torch.int16)
    assert wide(torch.ones(70_000)).tolist() == narrow(torch.ones(65_536)).tolist() == [0.0, 2.0, 3.0]


def test_an_input_that_is_not_finite_gives_nan_and_leaves_the_others() -> None:
    term = CodesTerm(Codes(torch.ones(2, 5, dtype=torch.int8), torch.ones(2, 1)), 2)
    x = torch.ones(3, 5)
    x[0, 2], x[2, 1] = float("inf"), float("nan")
    y = term(x)
    assert y[[0, 2]].isnan().all() and torch.equal(y[1], torch.full((2,), 5.0))


@pytest.mark.skipif(not SETS, reason="the compiled core was not built")
def test_tiny_inputs_are_the_same_everywhere() -> None:
    scales = np.ones((2, 1), np.float32)
    arrays = reference.Arrays(layout.packed(np.ones((2, 5)), 2), scales, None, None, None, 5, 5, 2)
    for size in (1e-45, 1e-38, 1e-36, 1e-34, 1e-32):
        x = np.full((1, 5), size, np.float32)
        assert np.array_equal(run(x, arrays, 2, ""), reference.product(x, arrays, 2))
        assert np.allclose(run(x, arrays, 2, ""), 5 * x[:, :2], atol=6e-33)


def test_inputs_of_any_stride_and_type() -> None:
    codes = torch.randint(-8, 8, (6, 64), dtype=torch.int8)
    term = CodesTerm(Codes(codes, torch.rand(6, 1)), 2)
    x = torch.randn(64, 4, 3).permute(2, 1, 0)
    assert torch.equal(term(x), term(x.contiguous()))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert term(x.to(dtype)).dtype == dtype
    assert term(torch.empty(0, 64)).shape == (0, 6)


@pytest.mark.parametrize("x", [torch.ones(2, 5), torch.ones(2, 4, dtype=torch.int64)])
def test_inputs_that_do_not_fit_are_refused(x: torch.Tensor) -> None:
    codes = CodesTerm(Codes(torch.ones(3, 4, dtype=torch.int8), torch.ones(3, 1)), 2)
    for term in (codes, EntriesTerm(torch.eye(3, 4))):
        with pytest.raises(BadInput):
            term(x)


@pytest.mark.skipif(not SETS, reason="the compiled core was not built")
def test_threads_that_multiply_at_once_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-8, 8, (500, 600))
    scales = rng.random((500, 1)).astype(np.float32)
    arrays = reference.Arrays(layout.packed(codes, 4), scales, None, None, None, 600, 600, 4)
    inputs = [rng.normal(size=(3, 600)).astype(np.float32) for _ in range(4)]
    wanted = [run(x, arrays, 2, "", threads=1) for x in inputs]

    def work(i: int) -> bool:
        return all(np.array_equal(run(inputs[i], arrays, 2, "", threads=3), wanted[i]) for _ in range(200))

    assert not failing(4, work)


@pytest.mark.skipif(not SETS, reason="the compiled core was not built")
def test_an_unknown_instruction_set_is_refused() -> None:
    arrays = reference.Arrays(
        layout.packed(np.zeros((1, 3)), 2), np.ones((1, 1), np.float32), None, None, None, 3, 3, 2
    )
    with pytest.raises(ValueError, match="sse9"):
        run(np.ones((1, 3), np.float32), arrays, 2, "sse9")
    assert run(np.ones((1, 3), np.float32), replace(arrays), 2, "portable").tolist() == [[0.0]]
