"""Codes along a trellis: the best path of all, closer to the limit than scalar codes, and never dearer."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from waterfill import Importance, Quantize, recipe
from waterfill.coding import native, trellis
from waterfill.coding.model import fitting
from waterfill.errors import BadRecipe, CorruptFile
from waterfill.importance import smooth_gram
from waterfill.part import cost, decode
from waterfill.parts.quantizer.viterbi import cheapest_path, cosets


def correlated(cols: int) -> torch.Tensor:
    inputs = torch.randn(4 * cols, cols) @ (torch.eye(cols) + 0.5 * torch.randn(cols, cols) / cols**0.5)
    return inputs.T @ inputs / len(inputs)


@given(st.sampled_from((4, 8, 64)), st.integers(0, 1 << 20))
def test_no_path_is_cheaper(states, seed):
    random = np.random.default_rng(seed)
    code, begin, rows = trellis.trellis(states), int(random.integers(states)), 7
    cost, best = (
        random.random((4, rows)).astype(np.float32),
        4 * random.integers(-3, 4, (4, rows)) + np.arange(4)[:, None],
    )
    codes, end = cheapest_path(cost, best.astype(np.int32), states, begin)

    def walk(bits: tuple[int, ...]) -> tuple[float, list[int], int]:
        state, spent, taken = begin, 0.0, []
        for row, bit in enumerate(bits):
            coset = int(code.parity[state]) + 2 * bit
            spent, taken = spent + float(cost[coset, row]), [*taken, int(best[coset, row])]
            state = int(code.transition[state, bit])
        return spent, taken, state

    least, taken, last = min(walk(bits) for bits in itertools.product((0, 1), repeat=rows))
    chosen = sum(float(cost[code % 4, row]) for row, code in enumerate(codes))
    assert chosen == pytest.approx(least, abs=1e-5)
    assert (codes.tolist(), end) == (taken, last)


def test_every_coset_offers_its_cheapest_code():
    random = np.random.default_rng(0)
    x = (random.normal(size=300) * 8).astype(np.float32)
    weight, scale, mean = (
        random.random(300).astype(np.float32) + 2,
        random.integers(50, 70, 300),
        random.integers(-60, 60, 300),
    )
    prices = fitting.price_tables(3)
    cost, best = cosets(x, weight, scale, mean, prices)
    assert (best % 4 == np.arange(4)[:, None]).all()

    def total(code: np.ndarray) -> np.ndarray:
        middle = (mean >> 1) - 4 * (code & 1)  # of k, in eighths
        whole = (middle + 4) // 8
        phase = middle - 8 * whole
        residual = np.where(phase < 0, whole - code // 2, code // 2 - whole)
        return weight * (x - code) ** 2 + prices[scale, np.abs(phase), residual & 255]

    for coset in range(4):
        assert cost[coset] == pytest.approx(total(best[coset]), rel=1e-5)
        for step in range(-5, 6):
            assert (cost[coset] <= total(4 * np.rint(x / 4).astype(int) + 4 * step + coset) + 1e-4).all()


def gap(spec: Quantize, price: float) -> tuple[float, float]:
    """Bits per entry of a Gaussian source, and how many of them the rate-distortion function would save."""
    torch.manual_seed(0)
    target = torch.randn(400, 400)
    part = spec.fit(target, Importance(), price)
    bits = 8 * len(part.encode()) / target.numel()
    return bits, bits - 0.5 * math.log2(float(target.square().mean() / (target - part.dense()).square().mean()))


@pytest.mark.parametrize(
    ("states", "most"), [(0, 0.27), (4, 0.11), (8, 0.09), (64, 0.065), pytest.param(256, 0.055, marks=pytest.mark.slow)]
)
def test_how_far_a_gaussian_source_is_from_its_limit(states, most):
    found = [gap(Quantize(states=states), price) for price in (0.2, 0.05, 5e-3, 1.2e-3)]
    assert [round(bits) for bits, _ in found] == [1, 2, 4, 5]
    assert max(gaps for _, gaps in found) < most


@pytest.mark.parametrize("price", [0.6, 0.45, 0.3, 0.03, 1e-5])
@pytest.mark.parametrize("source", ["gaussian", "laplace", "mostly zero"])
def test_a_trellis_costs_no_more_than_scalar_codes(price, source):
    target = torch.randn(120, 90)
    if source == "laplace":
        target = torch.from_numpy(np.random.default_rng(0).laplace(size=(120, 90))).float()
    if source == "mostly zero":
        target = target * (torch.rand(120, 90) < 0.1)
    scalar, along = (
        cost(Quantize(states=s).fit(target, Importance(), price), target, Importance(), price) for s in (0, 8)
    )
    assert along <= 1.002 * scalar


IMPORTANCES = {
    "none": (Importance(), (24, 36)),
    "rows": (Importance(torch.logspace(-1, 1, 24)), (24, 36)),
    "kernel": (Importance(kernel=(3, 3)), (24, 36)),
    "kernel and its Gram matrix": (Importance(gram=smooth_gram((3, 3), 0.75), kernel=(3, 3)), (24, 36)),
    "kernel and a Gram matrix": (Importance(gram=correlated(36), kernel=(3, 3)), (24, 36)),
    "Gram matrix of many columns": (Importance(gram=correlated(300)), (40, 300)),
    "one row": (Importance(), (1, 200)),
    "one column": (Importance(), (200, 1)),
    "several chunks": (Importance(), (1100, 1000)),
}


@pytest.mark.parametrize("name", IMPORTANCES)
@pytest.mark.parametrize("states", [4, 8, 128])
def test_codes_keep_to_the_trellis_and_read_back(name, states):
    importance, shape = IMPORTANCES[name]
    if native.core is None and math.prod(shape) > 1 << 16:
        pytest.skip("slow without the compiled core")
    target = torch.randn(shape)
    part = Quantize(states=states).fit(target, importance, 0.01)
    assert min(shape) == 1 or part.states == states
    positions = math.prod(part.kernel)
    if part.states:
        trellis.check(part.codes.numpy().reshape(shape[0], -1, positions), states)
        assert f"{states} states" in part.describe()
    data = part.encode()
    again = decode(data, shape)
    assert torch.equal(again.dense(), part.dense()) and again.encode() == data
    assert abs(8 * len(data) - part.bits) <= 0.01 * part.bits + 512


def test_feedback_and_trellis_add_up():
    target, importance = torch.randn(128, 96), Importance(gram=correlated(96))
    price = 0.02
    blind = Quantize(states=8).fit(target, Importance(diagonal=importance.gram.diagonal()), price)
    scalar, along = (Quantize(states=s).fit(target, importance, price) for s in (0, 8))
    unit = price * target.numel()
    assert cost(along, target, importance, price) < cost(scalar, target, importance, price) - 0.1 * unit
    assert cost(along, target, importance, price) < cost(blind, target, importance, price) - 0.02 * unit


def test_constant_codes_need_no_path():
    part = Quantize(states=8).fit(torch.zeros(20, 30), Importance(), 0.1)
    assert len(part.encode()) < 20 and not part.dense().any()


def test_recipes():
    assert recipe.parse("Quantize(states=64)") == Quantize(states=64)
    assert repr(Quantize(states=8)) == "Quantize(states=8)" and repr(Quantize(states=0)) == "Quantize()"
    with pytest.raises(BadRecipe, match="4, 8, 16"):
        Quantize(states=9)
    with pytest.raises(BadRecipe, match="goes without bits"):
        Quantize(bits=4, states=8)


def test_a_file_with_an_unknown_trellis_is_refused():
    part = Quantize(states=8).fit(torch.randn(20, 30), Importance(), 0.01)
    data = bytearray(part.encode())
    head = data.index(0x80)  # kind, then the flags: three times 128
    assert (data[head], data[head + 1]) == (0x80, 3)
    data[head + 1] = 1
    with pytest.raises(CorruptFile, match="2 states"):
        decode(bytes(data), part.shape)
