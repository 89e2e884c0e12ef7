"""The bounds of `waterfill.theory`: against formulas, a numerical optimum, brute force, and our own quantizers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from waterfill import Importance, parse
from waterfill.compression.allocation.without_data import without_data
from waterfill.errors import BadInput
from waterfill.importance import smooth_gram
from waterfill.theory import (
    NetworkLimit,
    Spectrum,
    gaussian_rate,
    linear_rate,
    linear_rate_bound,
    product_variances,
    reverse_water_filling,
)

VARIANCES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12)


def covariance(n: int, seed: int) -> np.ndarray:
    """A random one of full rank."""
    root = np.random.default_rng(seed).standard_normal((n, 2 * n))
    return root @ root.T / n


# ------------------------------------------------------------------------------------------- reverse water-filling


def test_the_textbook_example() -> None:
    found = reverse_water_filling([4.0, 1.0, 0.25], distortion=1.25)
    assert found.level == pytest.approx(0.5)
    assert found.rate == pytest.approx(0.5 * math.log2(8) + 0.5 * math.log2(2))
    assert reverse_water_filling([2.0], distortion=0.5).rate == pytest.approx(gaussian_rate(2.0, 0.5)) == 1.0


@given(VARIANCES, st.floats(1e-4, 1.0))
def test_the_three_ways_to_ask_agree(variances: list[float], share: float) -> None:
    by_level = reverse_water_filling(variances, level=share * max(variances))
    by_distortion = reverse_water_filling(variances, distortion=by_level.distortion)
    by_rate = reverse_water_filling(variances, rate=by_level.rate)
    for other in (by_distortion, by_rate):
        assert other.rate == pytest.approx(by_level.rate, rel=1e-9, abs=1e-9)
        assert other.distortion == pytest.approx(by_level.distortion, rel=1e-9)


@given(VARIANCES, st.floats(0.01, 0.99), st.integers(0, 1000))
def test_no_other_way_to_share_the_distortion_takes_fewer_bits(variances, share, seed) -> None:
    down = np.array(variances)
    allowed = share * down.sum()
    best = reverse_water_filling(variances, distortion=allowed).rate
    parts = np.random.default_rng(seed).dirichlet(np.ones(len(down)), 20) * allowed
    rates = 0.5 * np.log2(np.maximum(1.0, down / np.maximum(parts, 1e-300))).sum(1)
    assert rates.min() >= best - 1e-9


@pytest.mark.parametrize(
    ("variances", "asked"),
    [([1.0, -1.0], {"level": 1.0}), ([np.nan], {"rate": 1.0}), ([1.0], {}), ([1.0], {"rate": 1.0, "level": 1.0})],
)
def test_what_has_no_meaning_is_refused(variances, asked) -> None:
    with pytest.raises(BadInput):
        reverse_water_filling(variances, **asked)
    with pytest.raises(BadInput, match="infinite"):
        gaussian_rate(1.0, 0.0)


def test_nothing_to_code_takes_no_bits() -> None:
    assert reverse_water_filling([0.0, 0.0], rate=3.0).distortion == 0
    assert reverse_water_filling([3.0, 1.0], rate=0.0).distortion == pytest.approx(4.0)
    assert reverse_water_filling([3.0, 1.0], distortion=9.0).rate == 0
    assert reverse_water_filling([3.0, 1.0], distortion=0.0).rate == math.inf


# ------------------------------------------------------------------------------------------------ a linear layer


def numerical_rate(weights: np.ndarray, inputs: np.ndarray, distortion: float) -> float:
    """Least 1/2 log2 det S / det D over error covariances D below S with tr(D A) = distortion, by gradient descent.

    D = (S^-1 + G G^T)^-1, the error of a Gaussian test channel that shows the weights through G and white noise.
    """
    S, A = torch.from_numpy(weights), torch.from_numpy(inputs)
    G = torch.eye(len(S), dtype=torch.float64).requires_grad_()
    precision = torch.linalg.inv(S)

    def error(factor: torch.Tensor) -> torch.Tensor:
        return torch.linalg.inv(precision + factor @ factor.T)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        D = error(G)
        price = len(S) / (2 * distortion_scale)
        cost = 0.5 * (torch.logdet(S) - torch.logdet(D)) + price * torch.trace(D @ A)
        cost.backward()
        return cost

    low, high = 1e-4 * float(np.trace(weights @ inputs)), 1e2 * float(np.trace(weights @ inputs))
    for _ in range(40):  # the price at which the distortion is met
        distortion_scale = math.sqrt(low * high)
        optimizer = torch.optim.LBFGS([G], max_iter=300, tolerance_grad=1e-11, line_search_fn="strong_wolfe")
        optimizer.step(closure)
        reached = float(torch.trace(error(G.detach()) @ A))
        low, high = (distortion_scale, high) if reached < distortion else (low, distortion_scale)
    D = error(G.detach())
    return 0.5 * float(torch.logdet(S) - torch.logdet(D)) / math.log(2)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_the_rate_of_a_linear_layer_is_that_of_the_best_test_channel(share: float) -> None:
    S, A = covariance(3, 1), covariance(3, 2)
    distortion = share * float(np.trace(S @ A))
    assert linear_rate(S, A, distortion) == pytest.approx(numerical_rate(S, A, distortion), abs=2e-3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9])
def test_the_published_bound_lies_below_and_is_tight_where_it_should_be(seed: int, share: float) -> None:
    S, A = covariance(5, seed), covariance(5, seed + 50)
    distortion = share * float(np.trace(S @ A))
    assert linear_rate_bound(S, A, distortion) <= linear_rate(S, A, distortion) + 1e-9
    _, basis = np.linalg.eigh(A)
    common = basis @ np.diag(np.random.default_rng(seed).uniform(0.1, 3, 5)) @ basis.T
    distortion = share * float(np.trace(common @ A))
    assert linear_rate_bound(common, A, distortion) == pytest.approx(linear_rate(common, A, distortion), abs=1e-9)


def test_high_rate_in_closed_form() -> None:
    S, A, distortion = covariance(6, 3), covariance(6, 4), 1e-6
    logarithms = [np.linalg.slogdet(m)[1] / math.log(2) for m in (S, A)]
    known = 0.5 * sum(logarithms) - 3 * math.log2(distortion / 6)
    assert linear_rate(S, A, distortion) == pytest.approx(known, rel=1e-9)
    assert linear_rate_bound(S, A, distortion) == pytest.approx(known, rel=1e-9)


# ------------------------------------------------------------------------------------------- weights and networks


def importances(rows: int, channels: int, kernel: tuple[int, ...]) -> list[Importance]:
    """Every form: scalars, diagonal, the Gram matrix of a kernel, that of all columns."""
    positions, weights = math.prod(kernel), torch.rand(rows) + 0.1
    cols = channels * positions
    full = torch.from_numpy(covariance(cols, 5)).float()
    return [
        Importance(),
        Importance(weights, torch.rand(cols), kernel=kernel),
        Importance(weights, gram=smooth_gram(kernel, 0.6), kernel=kernel),
        Importance(weights, gram=full, kernel=kernel),
    ]


@pytest.mark.parametrize("which", range(4))
def test_a_spectrum_is_the_eigenvalues_of_the_metric_under_the_model(which: int) -> None:
    rows, channels, kernel = 6, 4, (3,)
    target = torch.randn(rows, 12) * (torch.rand(rows, 1) + 0.2)
    importance = importances(rows, channels, kernel)[which]
    by_row, by_col = product_variances(target, importance.positions)
    eye = torch.eye(12)
    metric = np.array([[importance.select_rows(slice(0, 1)).inner(a[None], b[None]) for a in eye] for b in eye])
    g = importance.rows.double().expand(rows).numpy()
    half = np.diag(np.sqrt(by_col))
    values = np.linalg.eigvalsh(half @ metric @ half) / g[0]
    components = np.outer(g * by_row, values).reshape(-1)
    spectrum = Spectrum.of(target, importance)
    assert spectrum.entries == components.size
    for level in (1e-4, 0.1, 1.0, 10.0):
        known = reverse_water_filling(components.clip(0), level=level)
        bits, nats = spectrum.at(level)
        assert bits == pytest.approx(known.rate, rel=1e-5, abs=1e-9)
        assert nats == pytest.approx(known.distortion / 2, rel=1e-5)


def test_variances_of_rows_channels_and_positions_are_found() -> None:
    u, v, w = torch.rand(200) + 0.2, torch.rand(100) + 0.2, torch.tensor([0.3, 1.0, 2.0, 0.5])
    target = torch.randn(200, 400) * torch.outer(u, torch.outer(v, w).reshape(-1))
    by_row, by_col = product_variances(target, 4)
    found = np.outer(by_row, by_col)
    known = torch.outer(u, torch.outer(v, w).reshape(-1)).square().numpy()
    assert np.abs(np.log(found / known)).mean() < 0.15
    assert abs(np.log(found / known).mean()) < 0.02


def test_factors_that_tell_nothing_are_left_out() -> None:
    by_row, by_col = product_variances(torch.randn(64, 64))
    assert len(set(by_row)) == len(set(by_col)) == 1
    by_row, by_col = product_variances(torch.randn(1, 50))  # a number for each entry would be the entries themselves
    assert len(set(by_col)) == 1
    by_row, _ = product_variances(torch.randn(8, 100) * torch.tensor([[0.0], [1.0]]).repeat(4, 1))
    assert (by_row[::2] == 0).all() and (by_row[1::2] > 0.5).all()


def test_dead_weights_cost_nothing() -> None:
    limit = NetworkLimit({"w": (Spectrum.of(torch.zeros(4, 8), Importance()),)})
    assert limit.at_rate(3.0).bits == limit.at_rate(3.0).nats == 0


@pytest.fixture
def network() -> NetworkLimit:
    layers = {f"layer{i}": (Spectrum.of(torch.randn(6, 12), x),) for i, x in enumerate(importances(6, 4, (3,)))}
    return NetworkLimit(layers | {"experts": tuple(Spectrum.of(torch.randn(5, 7), Importance()) for _ in range(2))})


def test_the_curve_of_a_network(network: NetworkLimit) -> None:
    assert network.entries == 4 * 72 + 70
    curve = network.curve(np.geomspace(1e-6, 1e3, 60))
    bits, nats = np.array([p.bits for p in curve]), np.array([p.nats for p in curve])
    assert (np.diff(bits) <= 0).all() and (np.diff(nats) >= 0).all()
    middle = slice(1, -1)
    slopes = (nats[2:] - nats[:-2]) / np.minimum(bits[2:] - bits[:-2], -1e-12)
    prices = np.array([p.price for p in curve])
    deep = bits[2:] > 1
    assert (-slopes[deep] > 0.6 * prices[middle][deep]).all()  # the price is the slope of the curve
    assert (-slopes[deep] < 1.7 * prices[middle][deep]).all()


@pytest.mark.parametrize("bits", [0.0, 0.3, 1.0, 2.5, 6.0])
def test_a_point_is_found_from_either_side_and_by_layer(network: NetworkLimit, bits: float) -> None:
    point = network.at_rate(bits)
    assert point.rate == pytest.approx(bits, abs=1e-9)
    assert network.at_nats(point.nats).rate == pytest.approx(bits, abs=1e-6)
    assert network.gap(bits + 0.25, point.nats) == pytest.approx(0.25, abs=1e-6)
    layers = network.by_layer(point.level)
    assert sum(p.bits for p in layers.values()) == pytest.approx(point.bits)
    assert sum(p.nats for p in layers.values()) == pytest.approx(point.nats)
    with pytest.raises(BadInput):
        network.at_nats(0.0)


def test_one_level_for_all_is_better_than_one_rate_for_all(network: NetworkLimit) -> None:
    alone = [NetworkLimit({name: spectra}).at_rate(2.0).nats for name, spectra in network.layers.items()]
    assert network.at_rate(2.0).nats < 0.9 * sum(alone)


# ------------------------------------------------------------------------------------------------ our quantizers


@pytest.mark.parametrize("recipe", ["Quantize()", "Quantize() + Prune()", "Codebook()", "Quantize(bits=3)"])
@pytest.mark.parametrize("bits", [0.5, 1.0, 2.0, 4.0])
def test_no_part_beats_the_bound_on_a_gaussian_source(recipe: str, bits: float) -> None:
    target = torch.randn(160, 160)
    price = float(target.square().mean()) * 4.0**-bits * math.log(2)
    part = parse(recipe).fit(target, Importance(), price)
    rate = 8 * len(part.encode()) / target.numel()
    error = float((target - part.dense()).square().mean())
    assert rate >= gaussian_rate(float(target.square().mean()), error)


@pytest.mark.parametrize("form", ["full", "kernel"])
def test_with_a_gram_matrix_the_quantizer_ends_close_above_the_bound(form: str) -> None:
    target = torch.randn(1500, 36)
    gram = torch.from_numpy(covariance(36, 9)).float()
    importance = Importance(gram=gram) if form == "full" else without_data(target, (3, 3))
    limit = NetworkLimit({"w": (Spectrum.of(target, importance),)})
    part = parse("Quantize()").fit(target, importance, limit.at_rate(3.0).price)
    found = importance.distortion(target - part.dense())
    assert 0.1 < limit.gap(8 * len(part.encode()) / target.numel(), found) < 0.4
