"""The short way to the kernels: to the bit what the reference does, for what it is meant for, and left for all else."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from waterfill.coding import native
from waterfill.part import Chain, Codes, Entries, Product, Sum
from waterfill.part.memory import width_of
from waterfill.runtime import layout, reference
from waterfill.runtime.leaves import CodesTerm, EntriesTerm, Term
from waterfill.runtime.terms import ChainTerm, SumTerm, term_of

SETS = native.core.product_sets() if native.core is not None else []
compiled = pytest.mark.skipif(not SETS, reason="the compiled core was not built")


def codes(rng: np.random.Generator, rows: int, cols: int, far: bool = False) -> Codes:
    """Small codes, with scales of columns; some of them far out."""
    values = rng.integers(-7, 8, (rows, cols)).astype(np.int16)
    if far:
        values[rng.random((rows, cols)) < 0.01] = 500
    scales = torch.from_numpy(rng.normal(size=(rows, 1)).astype(np.float32))
    return Codes(
        torch.from_numpy(values), scales, columns=torch.from_numpy(rng.lognormal(size=cols).astype(np.float32))
    )


def by_reference(term: Term, x: np.ndarray, size: int) -> np.ndarray:
    """What the reference makes of inputs [1, cols]."""
    if isinstance(term, CodesTerm):
        return reference.product(x, term._matrix.arrays, size)
    if isinstance(term, EntriesTerm):
        where = term.where.numpy().view(np.uint16) if term.where.dtype == torch.int16 else term.where.numpy()
        return reference.entries_product(x, term.starts.numpy(), where, term.values.numpy())
    if isinstance(term, ChainTerm):
        return by_reference(term.left, by_reference(term.right, x, size), size)
    assert isinstance(term, SumTerm)
    first, *others = term._terms
    made = by_reference(first, x, size)
    for other in others:
        made = made + by_reference(other, x, size)
    return made


@st.composite
def sums(draw: st.DrawFn) -> Sum:
    """Two to four matrices of one shape."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    rows, cols, rank = draw(st.integers(32, 120)), draw(st.integers(64, 400)), draw(st.integers(9, 20))

    def one(kind: str) -> Product:
        if kind == "chain":
            return Chain(codes(rng, rows, rank), codes(rng, rank, cols))
        if kind == "entries":
            few = rng.normal(size=(rows, cols)) * (rng.random((rows, cols)) < 0.05)
            return Entries(torch.from_numpy(few.astype(np.float32)))
        return codes(rng, rows, cols, kind == "far")

    kinds = st.lists(st.sampled_from(["codes", "far", "chain", "entries"]), min_size=2, max_size=4)
    return Sum(tuple(one(kind) for kind in draw(kinds)))


@compiled
@given(sums(), st.sampled_from([1, 2]), st.integers(0, 1 << 32))
def test_a_sum_in_one_call_is_that_of_the_reference_with_every_instruction_set(sum_: Sum, size: int, seed: int) -> None:
    term = term_of(sum_, size)
    assert isinstance(term, SumTerm)
    x = np.random.default_rng(seed).normal(size=(1, term.cols)).astype(np.float32)
    records = [each.record() for each in term._terms]
    assert None not in records
    wanted = by_reference(term, x, size)
    assert np.array_equal(term(torch.from_numpy(x)).numpy(), wanted)
    for isa in SETS:
        y = np.full((1, term.rows), np.nan, np.float32)
        native.core.sum_product([x.ctypes.data, y.ctypes.data], records, 2, isa)
        assert np.array_equal(y, wanted)


@compiled
@pytest.mark.parametrize("cols", [40_000, 600])
def test_a_product_shared_by_threads_is_the_same(cols: int) -> None:
    rng = np.random.default_rng(0)
    rows = (1 << 21) // cols
    term = term_of(Sum((codes(rng, rows, cols, far=True), Entries(torch.eye(rows, cols)))), 2)
    x, threads, found = torch.randn(1, cols, generator=torch.Generator().manual_seed(0)), torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(term(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
    assert np.array_equal(found[0].numpy(), by_reference(term, x.numpy(), 2))


@compiled
@pytest.mark.parametrize("bits", layout.WIDTHS)
@pytest.mark.parametrize("cols", [1 << 15, (1 << 15) + 64])
def test_the_largest_sums_of_four_rows_are_exact(bits: int, cols: int) -> None:
    """At the width up to which sums of rows stay within 32 bits, and beyond it."""
    extremes = np.array([(1 << bits - 1) - 1, -(1 << bits - 1)] * 3)
    own = np.broadcast_to(extremes[:, None], (6, cols))
    arrays = reference.Arrays(layout.packed(own, bits), np.ones((6, 1), np.float32), None, None, None, cols, cols, bits)
    places = [0 if v is None else v.ctypes.data for v in (arrays.data, arrays.scales, *[None] * 5)]
    for x in (np.ones((1, cols), np.float32), -np.ones((1, cols), np.float32)):
        for size in (1, 2):
            wanted = reference.product(x, arrays, size)
            for isa in SETS:
                y = np.full((1, 6), np.nan, np.float32)
                given = [x.ctypes.data, y.ctypes.data, *places]
                native.core.codes_product(given, [1, 6, cols, 1, cols], bits, size, 1, isa)
                assert np.array_equal(y, wanted)


@compiled
def test_the_matrix_is_the_one_that_the_layer_holds_now() -> None:
    """State that is loaded, copied, shared or assigned lies elsewhere in memory."""
    rng = np.random.default_rng(1)
    one, other = (term_of(codes(rng, 40, 200), 2) for _ in range(2))
    x = torch.randn(1, 200, generator=torch.Generator().manual_seed(0))
    first, second = one(x), other(x)
    twin = copy.deepcopy(one)
    assert torch.equal(twin(x), first)
    twin.load_state_dict(other.state_dict())
    assert torch.equal(twin(x), second) and torch.equal(one(x), first)
    twin.load_state_dict(one.state_dict(), assign=True)
    assert torch.equal(twin(x), first)
    twin.share_memory()
    assert torch.equal(twin(x), first)
    twin.data = other.data
    assert not torch.equal(twin(x), first)


@compiled
def test_unusual_inputs_give_the_same() -> None:
    term = term_of(codes(np.random.default_rng(2), 30, 200), 2)
    x = torch.randn(6, 200, generator=torch.Generator().manual_seed(0))
    wanted = torch.cat([term(row[None]) for row in x])
    assert torch.equal(term(x), wanted)
    assert torch.equal(term(x.T.contiguous().T), wanted)
    assert torch.equal(term(x[None, :, None]), wanted[None, :, None])
    assert torch.equal(term(x[0]), wanted[0])
    assert term(x[:0]).shape == (0, 30)
    assert torch.equal(term(x.double()).float(), wanted)
    assert torch.isnan(term(torch.full((1, 200), torch.nan))).all()


@given(
    st.sampled_from(layout.WIDTHS), st.sampled_from([np.int8, np.int16, np.int32, np.uint8]), st.integers(0, 1 << 32)
)
def test_codes_beyond_the_width_are_clipped_and_what_is_missing_is_known(bits: int, dtype: type, seed: int) -> None:
    rng = np.random.default_rng(seed)
    limits = np.iinfo(dtype)
    spread = rng.normal(size=(rng.integers(1, 20), rng.integers(1, 400))) * rng.choice([1, 5, 90])
    given = np.clip(spread.round(), max(limits.min, -30_000), min(limits.max, 30_000)).astype(dtype)
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    count = int(((given < low) | (given > high)).sum())
    assert np.array_equal(layout.unpacked(layout.packed(given, bits), given.shape[1], bits), np.clip(given, low, high))
    starts, where, values = layout.clipped(given, bits, count)
    again = np.clip(given, low, high).astype(np.int64)
    again[np.repeat(np.arange(len(given)), np.diff(starts)), where] += values
    assert np.array_equal(again, given)
    mine, found = layout.packed(given, bits), width_of(Codes(torch.from_numpy(given), torch.ones(len(given), 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "core", None)
        assert np.array_equal(layout.packed(given, bits), mine)
        for own, plain in zip((starts, where, values), layout.clipped(given, bits, count), strict=True):
            assert np.array_equal(own, plain) and own.dtype == plain.dtype
        assert width_of(Codes(torch.from_numpy(given), torch.ones(len(given), 1))) == found
