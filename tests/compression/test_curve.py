"""Rate-distortion points, the curve through them, and the water level by the formula of Gaussian sources."""

import math

import pytest
import torch

from waterfill import Importance
from waterfill.compression.allocation.curve import Curve, Point, water_level


def gaussian(price: float) -> Point:
    """1000 entries of a Gaussian source of unit variance: R = 1/2 log2(1/D), -dD/dR = 2 ln2 D = price."""
    distortion = min(1.0, price / (2 * math.log(2)))
    return Point(500 * math.log2(1 / distortion), 1000 * distortion)


def test_a_curve_is_measured_only_where_it_is_asked():
    asked = []
    curve = Curve(lambda price: asked.append(price) or gaussian(price))
    curve.at(4.0**-3.5)
    curve.at(4.0**-3.2)
    curve.at_grid(-4)
    assert sorted(asked) == [4.0**-4, 4.0**-3]


@pytest.mark.parametrize("k", [-6.0, -5.5, -3.25, -2.01])
def test_between_grid_prices_a_gaussian_source_is_met_exactly(k):
    found, wanted = Curve(gaussian).at(4.0**k), gaussian(4.0**k)
    assert found.bits == pytest.approx(wanted.bits, rel=1e-9)
    assert found.distortion == pytest.approx(wanted.distortion, rel=1e-9)


def test_a_distortion_of_zero_stays_finite():
    point = Curve(lambda price: Point(10.0, 0.0)).at(0.3)
    assert point.bits == 10 and point.distortion == pytest.approx(0, abs=1e-200)


@pytest.mark.parametrize("bits", [0.5, 2.0, 7.0])
def test_entries_of_one_variance_take_a_bit_for_every_factor_of_four_in_the_level(bits):
    level = water_level(torch.full((6, 8), 4.0), Importance(torch.tensor(3.0), torch.full((8,), 0.5)), bits)
    assert level == pytest.approx(math.log2(16 * 3 * 0.5) - 2 * bits)


def test_rows_below_the_water_take_no_bits():
    """Cover and Thomas, theorem 10.3.3: half of the entries spend all of the bits."""
    target = torch.cat([torch.full((5, 4), 1.0), torch.full((5, 4), 1e-3)])
    assert water_level(target, Importance(), 1.0) == pytest.approx(-4)
    assert water_level(target, Importance(), 20.0) == pytest.approx(math.log2(1e-3) - 40, rel=1e-6)


def test_a_gram_matrix_counts_by_its_triangular_factor():
    gram = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    alike = water_level(torch.ones(3, 6), Importance(gram=gram, kernel=(2,), damping=0.0), 3.0)
    assert alike == pytest.approx(0.5 * math.log2(1 - 0.8**2) - 6)


def test_entries_of_a_vector_have_a_variance_each():
    found = water_level(torch.tensor([[1.0, 4.0]]), Importance(torch.tensor(2.0), torch.tensor([1.0, 0.25])), 5.0)
    assert found == pytest.approx(0.5 * (math.log2(2) + math.log2(8)) - 10)
