"""The quantizer at a price: known answers, exhaustive search, scales, feedback's use, hard numbers."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.networks import relative

from waterfill import Importance, Quantize
from waterfill.coding import native
from waterfill.coding.model import fitting
from waterfill.errors import BadInput
from waterfill.part import cost, decode
from waterfill.parts.quantized import QuantizedPart
from waterfill.parts.quantizer.code_choice import Chooser, choose_codes


def steps(price: float) -> float:
    """The step of high-rate theory at unit weight: dD/dR = -2 ln2 D and D = step^2 / 24 nats an entry."""
    return math.sqrt(12 * price / math.log(2))


def correlated(cols: int) -> torch.Tensor:
    inputs = torch.randn(4 * cols, cols) @ (torch.eye(cols) + 0.5 * torch.randn(cols, cols) / cols**0.5)
    return inputs.T @ inputs / len(inputs)


def test_the_distortion_at_high_rate_is_that_of_theory():
    target = torch.randn(128, 128)
    for price in (1e-5, 1e-6):
        part = Quantize().fit(target, Importance(), price)
        assert part.grid.step == pytest.approx(steps(price), rel=0.02)
        assert Importance().distortion(target - part.dense()) == pytest.approx(
            target.numel() * steps(price) ** 2 / 24, rel=0.05
        )


def test_the_rate_is_within_a_quarter_bit_of_the_rate_distortion_function():
    target = torch.randn(256, 256)
    for price in (1e-2, 1e-3, 1e-5):
        part = Quantize().fit(target, Importance(), price)
        mean_square = float((target - part.dense()).square().mean())
        assert part.bits / target.numel() == pytest.approx(0.5 * math.log2(1 / mean_square) + 0.2546, abs=0.04)


def test_at_low_rate_choosing_by_cost_beats_rounding():
    target = torch.randn(96, 96)
    price = 0.05
    part = Quantize().fit(target, Importance(), price)
    rounded = QuantizedPart(part.shape, (target / part.grid.step).round().to(torch.int8), part.grid)
    assert cost(part, target, Importance(), price) < 0.99 * cost(rounded, target, Importance(), price)


@pytest.mark.parametrize("seed", range(5))
def test_chosen_codes_are_the_best_of_all_under_their_densities(seed):
    random = np.random.default_rng(seed)
    x = random.laplace(size=(3, 4)).astype(np.float32) * 2
    model = fitting.fit(np.rint(random.laplace(size=(30, 4, 1)) * 2).astype(np.int32), ())
    weight = (np.full(3, 0.7), np.full(4, 1.3))
    chooser = Chooser(fitting.fit_like(np.rint(x).astype(np.int32)[:, :, None], (), model), (), weight)
    codes = chooser(slice(0, 3), x)

    def total(trial: np.ndarray) -> float:
        bits = fitting.total_bits(trial[:, :, None], (), chooser.model)
        return 0.7 * 1.3 * float(((x - trial) ** 2).sum()) + bits

    best = total(codes)
    for row, col in itertools.product(range(3), range(4)):  # entries are coded independently
        for other in range(-12, 13):
            trial = codes.copy()
            trial[row, col] = other
            assert best <= total(trial) + 0.05  # prices are tabulated in small fractions of a bit
    assert best <= total(np.rint(x).astype(np.int32)) + 0.05


@given(st.integers(0, 1 << 20), st.booleans())
def test_compiled_choice_equals_the_numpy_form(seed, with_means):
    if native.core is None:
        pytest.skip("the compiled core is not installed")
    random = np.random.default_rng(seed)
    rows, cols = random.integers(1, 20, 2)
    x = (random.laplace(size=(rows, cols)) * 2.0 ** random.integers(-2, 12)).astype(np.float32)
    prices = fitting.price_tables(int(random.integers(0, 4)))
    scale = (
        random.integers(0, len(prices) // 2, rows).astype(np.int32),
        random.integers(0, len(prices) // 2, cols).astype(np.int32),
    )
    means = random.integers(-40, 40, (rows, cols)).astype(np.int32) if with_means else np.zeros((0, 0), np.int32)
    weights = random.random(rows) + 0.01, random.random(cols) + 0.01
    compiled = choose_codes(x, scale, means, prices, weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "core", None)
        plain = choose_codes(x, scale, means, prices, weights)
    assert (compiled != plain).mean() <= 0.01  # ties between two codes may fall either way
    assert np.abs(compiled - plain).max() <= 1 or not with_means


def test_a_gram_matrix_lowers_the_distortion_at_equal_bits():
    target, importance = torch.randn(64, 48), Importance(gram=correlated(48))
    fed = Quantize().fit(target, importance, 1e-3)
    blind = min(
        (Quantize().fit(target, Importance(), 1e-3 * 2.0**k) for k in range(-4, 5)),
        key=lambda part: abs(part.bits - fed.bits),
    )
    assert importance.distortion(target - fed.dense()) < importance.distortion(target - blind.dense())
    assert cost(fed, target, importance, 1e-3) < cost(blind, target, importance, 1e-3)


def test_a_kernel_gram_equals_the_block_diagonal_one():
    small = correlated(9)
    target = torch.randn(8, 36)
    by_kernel = Importance(gram=small, kernel=(3, 3))
    full = Importance(gram=torch.block_diag(*[small] * 4), kernel=(3, 3))
    assert by_kernel.distortion(target) == pytest.approx(full.distortion(target), rel=1e-5)
    a, b = (Quantize().fit(target, importance, 1e-3) for importance in (by_kernel, full))
    assert float((a.codes == b.codes).double().mean()) > 0.99  # rounding in the factors may turn a tie


def test_importance_that_differs_brings_scales():
    target = torch.randn(64, 64)
    dear = torch.tensor([1.0, 64.0]).repeat(32)
    plain, by_row, by_col = (
        Quantize().fit(target, importance, 1e-4)
        for importance in (Importance(), Importance(dear), Importance(diagonal=dear))
    )
    assert plain.grid.rows is None and plain.grid.channels is None
    assert by_row.grid.rows is not None and by_row.grid.channels is None
    assert by_col.grid.channels is not None and by_col.grid.rows is None
    error = (target - by_row.dense()).square().mean(1)
    assert float(error[0::2].mean() / error[1::2].mean()) == pytest.approx(64, rel=0.2)
    assert "row scales" in by_row.describe() and "channel scales" in by_col.describe()


HARD = {
    "zeros": torch.zeros(20, 30),
    "negative zeros": -torch.zeros(20, 30),
    "constant": torch.full((20, 30), 0.7),
    "one entry": torch.tensor([[0.3]]),
    "a row": torch.linspace(-1, 1, 200)[None],
    "a column": torch.linspace(-1, 1, 200)[:, None],
    "an outlier": torch.zeros(20, 30).index_put((torch.tensor(3), torch.tensor(4)), torch.tensor(1e4)),
    "large": torch.linspace(-1, 1, 600).reshape(20, 30) * 1e30,
    "small": torch.linspace(-1, 1, 600).reshape(20, 30) * 1e-30,
    "half denormals": (torch.linspace(-1, 1, 600).reshape(20, 30) * 1e-6).half().float(),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("recipe", [Quantize(), Quantize(bits=4, group=7), Quantize(bits=3, symmetric=False)], ids=repr)
def test_hard_matrices_fit_and_read_back(name, recipe):
    target = HARD[name]
    energy = float(target.double().square().sum())
    importance = Importance().scaled(target.numel() / energy if energy else 1.0)
    part = recipe.fit(target, importance, 1e-5)
    again = decode(part.encode(), part.shape)
    assert torch.equal(again.dense(), part.dense())
    assert bool(torch.isfinite(part.dense()).all())
    if recipe == Quantize() and energy:
        assert relative(target, part.dense()) < 0.02


def test_importance_that_does_not_fit_is_refused():
    with pytest.raises(BadInput, match=r"rows has shape \[3\], the weight needs \[4\]"):
        Quantize().fit(torch.randn(4, 5), Importance(torch.ones(3)), 1e-3)


def test_an_importance_of_zero_costs_next_to_nothing():
    part = Quantize().fit(torch.randn(30, 30), Importance(torch.zeros(())), 1e-3)
    assert part.bits < 100


@pytest.mark.parametrize("states", [0, 8])
def test_scales_are_the_best_for_the_codes(states):
    target, importance = torch.randn(40, 48), Importance(torch.logspace(-1, 1, 40), torch.logspace(0, 0.5, 48))
    price = 0.3 * importance.distortion(target) / target.numel()
    part = Quantize(states=states).fit(target, importance, price)
    assert part.grid.rows is not None
    least = importance.distortion(target - part.dense())
    for factor in (0.99, 1.01):
        moved = replace(part, grid=replace(part.grid, step=part.grid.step * factor))
        assert importance.distortion(target - moved.dense()) >= least
    unit = np.eye(40, dtype=int)
    better = [replace(part.grid, rows=part.grid.rows + sign * row) for row in unit for sign in (-1, 1)]
    saved = [least - importance.distortion(target - replace(part, grid=grid).dense()) for grid in better]
    assert max(saved) < 8 * price  # no row's scale is an eighth of an octave off for much more than an exponent's bits


def test_scalar_codes_are_a_quarter_of_a_bit_above_the_bound_at_every_step():
    """Whatever the price: the step gives way to the scales that densities come in."""
    x = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
    gaps = []
    for k in range(4):
        part = Quantize().fit(x, Importance(), 4.0 ** (-5.2 - k / 24))
        error = float((x - part.dense()).double().square().mean())
        bound = 0.5 * math.log2(float(x.double().square().mean()) / error)
        gaps.append(8 * len(part.encode()) / x.numel() - bound)
    assert max(gaps) < 0.2607, gaps


def test_more_rows_than_a_sample_of_them_has() -> None:
    """As a vocabulary may have them."""
    target = torch.randn(263_000, 2, generator=torch.Generator().manual_seed(0))
    part = Quantize().fit(target, Importance(), 0.01)
    assert (part.dense() - target).square().mean() < 0.2
