"""The benchmark against the bound at toy size: the Laplace source's bound, the search for a price, the verdicts."""

import math
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.support.scripts import script

import waterfill
from waterfill.theory import gaussian_rate


@pytest.fixture(scope="module")
def laplace() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        module = script("opponents.laplace")
        patch.setattr(module, "ITERATIONS", 400)  # lines below R(D) whatever their number
        patch.setattr(module, "STEP", 0.06)
        module.tangents.cache_clear()
        module.tangents()
        return module


def test_the_laplace_bound_lies_between_shannons_and_a_channel_that_exists(laplace: ModuleType) -> None:
    for distortion in np.geomspace(1e-4, 0.99, 30):
        found = laplace.laplace_rate(distortion)
        assert laplace.shannon_bound(distortion) <= found <= gaussian_rate(1.0, distortion)
    assert laplace.laplace_rate(1.0) == 0
    assert laplace.laplace_rate(0.5, 5.0) == laplace.laplace_rate(0.1)
    assert laplace.laplace_rate(0.85) > laplace.shannon_bound(0.85) + 0.01  # where Shannon's bound is loose


def test_no_table_of_a_thousand_levels_beats_the_laplace_bound(laplace: ModuleType) -> None:
    x = np.random.default_rng(0).laplace(size=200_000)
    x /= x.std()
    for step in (0.1, 0.5, 1.0, 2.0, 3.0):
        codes = np.rint(x / step).astype(int)
        _, place, counts = np.unique(codes, return_inverse=True, return_counts=True)
        levels = np.bincount(place, x) / counts
        share = counts / len(x)
        entropy = -float((share * np.log2(share)).sum())
        assert entropy > laplace.laplace_rate(float(((x - levels[place]) ** 2).mean()), float(x.var()))


def test_sources_have_the_shape_they_are_named_after() -> None:
    bench = script("rate_distortion")
    for name, kurtosis in (("Gaussian", 3.0), ("Laplace", 6.0)):
        x = bench.draw(name, 400_000).double()
        assert float(x.square().mean()) == pytest.approx(1.0, abs=1e-6)
        assert abs(float(x.mean())) < 0.01
        assert float(x.pow(4).mean()) == pytest.approx(kurtosis, rel=0.05)


@pytest.mark.parametrize("rate", [0.5, 2.0])
def test_the_price_of_a_rate_is_found(rate: float) -> None:
    bench = script("rate_distortion")
    x = bench.draw("Gaussian", 60_000)
    spec = waterfill.parse("Quantize()")
    bits, nats, _ = bench.fitted(spec, x, waterfill.Importance(), bench.price_of(spec, x, rate))
    assert bits == pytest.approx(rate, rel=0.02)
    assert 0.05 < bits - gaussian_rate(1.0, 2 * nats / x.numel()) < 0.32


def test_the_verdicts_take_the_largest_gap() -> None:
    bench = script("rate_distortion")

    def found(recipe: str, wanted: float, above: float, source: str = "Gaussian") -> object:
        return bench.Found(source, recipe, wanted, wanted + above, 0.1, wanted, None, 0.0)

    sources = [found(bench.SCALAR, rate, 0.25) for rate in bench.RATES]
    sources += [found(bench.TRELLIS, rate, 0.05 + 0.01 * rate) for rate in bench.RATES]
    correlated = [found(bench.TRELLIS, rate, 0.3 / rate, "layer") for rate in bench.CORRELATED]
    rows = {row[0]: row[1:] for row in bench.claims(sources, correlated)}
    figures = {what.split(":")[0]: (float(row[0]), row[2]) for what, row in rows.items()}
    assert figures["Quantize()"] == (0.25, True)
    assert figures["Quantize(states=8)"] == (0.1, False)
    assert figures["Quantize(states=8), correlated columns"] == (0.15, True)
    assert "trellis at 0.25 and 0.5 bits" not in figures  # of one source only
    table = bench.by_rate("gaps", sources)
    assert [row[:2] for row in table.rows] == [["Gaussian", rate] for rate in bench.RATES]
    assert table.rows[2][2:] == pytest.approx([0.25, 0.06])


def test_an_unknown_recipe_is_left_out(capsys) -> None:
    bench = script("rate_distortion")
    assert bench.known("Quantize()")
    assert not bench.known("Quantize(states=7)")
    assert "left out: Quantize(states=7)" in capsys.readouterr().out


def test_the_bound_of_columns_that_correlate_is_below_that_of_columns_that_do_not() -> None:
    bench = script("rate_distortion")
    x = torch.randn(1000, 24)
    gram = 0.8 ** (torch.arange(24.0)[:, None] - torch.arange(24.0)).abs()
    plain = bench.NetworkLimit({"w": (bench.Spectrum.of(x, waterfill.Importance()),)})
    limit = bench.NetworkLimit({"w": (bench.Spectrum.of(x, waterfill.Importance(gram=gram)),)})
    spared = plain.at_nats(100.0).rate - limit.at_nats(100.0).rate
    assert spared == pytest.approx(-0.5 * 23 / 24 * math.log2(1 - 0.8**2), abs=1e-3)
