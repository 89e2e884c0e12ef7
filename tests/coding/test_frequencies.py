"""How often codes are expected to occur, against what a density, a histogram and plain bits say themselves."""

import numpy as np
import pytest
import torch

from waterfill import Codebook, Importance, LowRank, Prune, Quantize
from waterfill.coding import density
from waterfill.coding.codes import matrix
from waterfill.coding.codes.plain import Histogram, Packed


def normal(scale: float, *shape: int) -> np.ndarray:
    return np.round(np.random.default_rng(5).normal(0, scale, shape)).astype(np.int64)


def distance(frequencies) -> float:
    """Half of the summed differences, as a share of all codes: 0 for the same, 1 for none in common."""
    return float(np.abs(frequencies.found - frequencies.expected).sum() / 2 / frequencies.found.sum())


def test_found_are_the_codes_that_there_are() -> None:
    codes = np.array([[0, 1, 1, 5], [-2, 0, 0, 1]])
    found = matrix.plan(codes).frequencies()
    assert found.low == -2 and found.found.tolist() == [1, 0, 3, 3, 0, 0, 0, 1]


@pytest.mark.parametrize("kernel", [(), (3, 3)])
@pytest.mark.parametrize("scale", [0.7, 3.0, 60.0])
def test_a_density_expects_what_it_was_fitted_to(scale, kernel) -> None:
    codes = normal(scale, 96, 90)
    if kernel:
        codes = np.cumsum(codes.reshape(96, 10, 9), 2).reshape(96, 90)
    found = matrix.plan(codes, kernel).frequencies()
    assert 0.98 * codes.size < found.expected.sum() <= codes.size * 1.0001
    assert distance(found) < (0.05 if scale < 10 else 0.15)


def test_an_expectation_knows_the_scale_of_each_row() -> None:
    codes = np.concatenate([normal(1.0, 40, 200), normal(20.0, 40, 200)])
    assert distance(matrix.plan(codes).frequencies()) < 0.06


def test_the_bits_of_a_density_are_those_of_its_expectation() -> None:
    """For one scale the expected frequencies are the table itself: the cross entropy of the codes is what is paid."""
    codes = normal(2.0, 64, 64)
    plan = matrix.plan(codes)
    found = plan.frequencies()
    share = found.expected / codes.size
    paid = -float((found.found * np.log2(np.maximum(share, 1e-9))).sum())
    assert paid == pytest.approx(plan.bits, rel=0.03)


def test_a_histogram_and_plain_bits_say_it_themselves() -> None:
    codes = np.random.default_rng(2).integers(-3, 9, (30, 40))
    found = Histogram.plan(codes).frequencies()
    assert np.abs(found.expected - found.found).max() <= codes.size / (1 << density.PRECISION)
    found = Packed.plan(codes).frequencies()
    assert np.allclose(found.expected, codes.size / 16)


def test_a_trellis_expects_by_the_parity_of_its_states() -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(3))
    part = Quantize(states=8).fit(weight, Importance(), 0.05)
    found = part.frequencies()
    assert found.found.sum() == weight.numel() and distance(found) < 0.04


def test_parts_without_codes_of_their_own_name_none() -> None:
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(3))
    assert Codebook(levels=4).fit(weight, Importance(), 0.05).frequencies() is None
    assert Prune(keep=0.5).fit(weight, Importance(), 0.05).frequencies() is None
    factors = LowRank(rank=3).fit(weight, Importance(), 0.01).children()
    assert all(factor.frequencies() is not None for factor in factors.values())


def test_codes_too_far_apart_for_a_picture() -> None:
    assert matrix.plan(np.array([[0, 100_000, 3], [1, 2, 3]])).frequencies() is None
