"""Large batches multiply as floats by blocks of restored rows: near the exact product, whatever the weights."""

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.packed import close, pair
from torch import Tensor, nn

import waterfill
from waterfill.errors import BadInput
from waterfill.part import Codes, Levels
from waterfill.runtime.blocked import crossover, product
from waterfill.runtime.leaves import Term
from waterfill.runtime.terms import term_of

TYPES = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def codes(rows: int, cols: int, bits: int = 4) -> Term:
    numbers = torch.randint(-(1 << bits - 1), 1 << bits - 1, (rows, cols), dtype=torch.int8)
    return term_of(Codes(numbers, torch.rand(rows, 1), columns=torch.rand(cols)), 2)


def levels(rows: int, cols: int, count: int = 16) -> Term:
    return term_of(Levels(torch.randn(count).sort()[0], torch.randint(count, (rows, cols)).to(torch.uint8)), 2)


@pytest.mark.parametrize("make", [codes, levels])
@pytest.mark.parametrize("dtype", TYPES)
@given(st.tuples(st.integers(1, 60), st.integers(64, 300), st.integers(1, 70)), st.integers(0, 1 << 20))
def test_products_of_floats(
    make: Callable[[int, int], Term], dtype: torch.dtype, shape: tuple[int, int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    rows, cols, batch = shape
    term = make(rows, cols)
    term.large = 1
    x = torch.randn(2, batch, cols).to(dtype)
    found = term(x)
    assert found.dtype == dtype
    scale = x.double().abs() @ term.restored().double().abs().T  # a sum of so many rounded products
    wanted = x.double() @ term.restored().double().T
    assert bool(((found.double() - wanted).abs() <= TYPES[dtype] * scale + 1e-30).all())


@pytest.mark.parametrize("count", [3, 16, 17, 256])
@torch.no_grad()
def test_tables_of_values(count: int) -> None:
    torch.manual_seed(count)
    values, places = torch.randn(count), torch.randint(count, (40, 130)).to(torch.uint8)
    term = term_of(Levels(values, places), 2)
    assert torch.equal(term.restored(), values[places.long()])
    assert torch.equal(term.block(7, 19), values[places.long()][7:19])
    assert torch.equal(term.restored(torch.tensor([3, 3, 39])), values[places.long()][[3, 3, 39]])
    assert term.data.numel() < 4 * places.numel() / (2 if count > 16 else 4)


@torch.no_grad()
def test_one_block_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    seen: list[int] = []
    for make in (codes, levels):
        term, x = make(57, 128), torch.eye(128)[:20]
        term.large = 1
        wanted = term(x)  # and what this machine is good at is known
        with monkeypatch.context() as patch:
            patch.setattr(product, "ENTRIES", 1000)
            patch.setattr(torch, "mm", lambda a, b, *, out, own=torch.mm: seen.append(b.numel()) or own(a, b, out=out))
            assert close(term(x), wanted, 1e-6)
    assert len(seen) >= 16 and max(seen) <= 1024


@torch.no_grad()
def test_the_number_from_which_a_batch_is_large_can_be_given() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 96))
    made = waterfill.compress(net, spec="Quantize()", bits=4)
    dense, x = made.install(copy.deepcopy(net)).double(), torch.randn(600, 128)
    errors = {}
    for large in (1, 600, 601, 1 << 40):
        packed = waterfill.pack(made, copy.deepcopy(net), large=large)
        errors[large] = float((packed(x) - dense(x.double())).norm() / dense(x.double()).norm())
        assert torch.equal(packed(x[:1]), packed(x)[:1]) == (large > 600)
    assert errors[1] == errors[600] < 1e-6 < errors[601] == errors[1 << 40] < 1e-3
    with pytest.raises(BadInput, match="large=0"):
        waterfill.pack(made, copy.deepcopy(net), large=0)


@torch.no_grad()
def test_what_is_measured_is_a_power_of_two_once() -> None:
    kinds = [crossover.Kind.of(shape, 4, 2, torch.float32) for shape in ((200, 1000), (256, 8000))]
    assert kinds[0] == kinds[1] == crossover.Kind(256, 1024, 4, 2, torch.float32)
    found = [crossover.crossover(kind) for kind in kinds]
    assert found[0] is found[1] and found[0][1] == torch.float32
    assert found[0][0] >= crossover.LEAST and found[0][0].bit_count() == 1


@torch.no_grad()
def test_exported_networks_take_batches_of_every_size() -> None:
    torch.manual_seed(0)
    packed, dense = pair(nn.Linear(128, 96), "Quantize()")
    for term in packed.modules():
        if isinstance(term, Term):
            term.large = 32
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(packed, (torch.randn(3, 128),), dynamic_shapes=({0: batch},)).module()
    for count in (2, 31, 32, 500):
        x = torch.randn(count, 128)
        assert close(program(x), dense(x.double()), 1e-5 if count >= 32 else 1e-3)


@torch.no_grad()
def test_threads_that_multiply_at_the_same_time_find_the_same() -> None:
    torch.manual_seed(0)
    term, x = codes(64, 256), torch.randn(50, 256)
    term.large = 1
    wanted, found = term(x), []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert close(term(x), wanted, 1e-6)
    threads = [threading.Thread(target=lambda: found.append(term(x))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(value, wanted) for value in found) and len(found) == 4


def test_inputs_that_do_not_fit_are_refused() -> None:
    term = levels(20, 128)
    for x in (torch.zeros(2, 127), torch.zeros(2, 128, dtype=torch.int64), torch.zeros(2, 128, requires_grad=True)):
        with pytest.raises(BadInput):
            term(x)
    with pytest.raises(BadInput, match="0 to 19"):
        term.restored(torch.tensor([20]))


def test_restored_rows_are_those_of_the_reference() -> None:
    from waterfill.coding import native

    torch.manual_seed(1)
    for bits in (2, 3, 4, 5, 6, 8):
        for term in (codes(33, 150, bits), levels(33, 150, 1 << bits)):
            with pytest.MonkeyPatch.context() as patch:
                quick: Tensor = term.restored()
                patch.setattr(native, "core", None)
                assert torch.equal(term.restored(), quick)
