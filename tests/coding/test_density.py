"""Frozen tables of the generalized Gaussian family: what they are, and that nobody changes them unnoticed."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterfill.coding import density, rans
from waterfill.coding.density_tables import OCTAVE, SHAPES, SURVIVAL

SYMBOLS = np.arange(-127, 128)
# A change of this number is a change of the format: files that were written before can no longer be read.
FINGERPRINT = "9c7b6add9b8be2b1afb9fe94d084314538a7e6e1f9ae57e61cf588ec48853a31"


def sigma(scale):
    """The standard deviation of a scale index, in steps."""
    return 2.0 ** (scale / 8 - 5)


def survival(shape, x):
    """P(X > x) of the Laplace or Gaussian density of standard deviation 1."""
    return {1.0: 0.5 * math.exp(-x * math.sqrt(2)), 2.0: 0.5 * math.erfc(x / math.sqrt(2))}[shape]


def probability(shape, symbol, mean, deviation):
    """Mass of a bin of width 1 around `symbol`."""
    low, high = sorted(abs((symbol - mean + side) / deviation) for side in (-0.5, 0.5))
    inside = symbol - mean - 0.5 < 0 < symbol - mean + 0.5
    return 1 - survival(shape, low) - survival(shape, high) if inside else survival(shape, low) - survival(shape, high)


def test_the_family_is_frozen():
    tables = np.stack([density.family(shape) for shape in range(len(SHAPES))])
    assert hashlib.sha256(tables.astype("<u2").tobytes()).hexdigest() == FINGERPRINT


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_every_table_is_a_density(shape):
    tables = density.family(shape).astype(int)
    assert tables.shape == (density.SCALES, density.PHASES, 256)
    assert (tables.sum(2) == 1 << density.PRECISION).all()
    assert (tables[..., density.ESCAPE & 255] >= 1).all()
    right = tables[..., 1:128]
    left = tables[..., :128:-1]
    assert (np.diff(right) <= 1).all()  # away from the mean a frequency falls, but for its rounding
    assert (np.diff(left) <= 1).all()
    assert ((right[..., 1:] > 0) <= (right[..., :-1] > 0)).all()  # and once it is zero, it stays zero
    assert ((left[..., 1:] > 0) <= (left[..., :-1] > 0)).all()
    assert np.abs(right[:, 0] - left[:, 0]).max() <= 1  # phase 0 is symmetric


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_the_frozen_survival_function_falls_from_a_half(shape):
    assert SURVIVAL[shape][0] == 1 << 29
    assert (np.diff(SURVIVAL[shape]) <= 0).all()
    assert tuple(round(2 ** (i / 8) * 65536) for i in range(8)) == OCTAVE


@pytest.mark.parametrize("shape", [1.0, 2.0])
@pytest.mark.parametrize("scale", [0, 24, 40, 51, 72])
@pytest.mark.parametrize("phase", [0, 3, 4])
def test_tables_agree_with_closed_forms(shape, scale, phase):
    freq = density.family(SHAPES.index(shape))[scale, phase][SYMBOLS & 255] / 4096.0
    exact = [probability(shape, s, phase / 8, sigma(scale)) for s in SYMBOLS]
    assert np.abs(freq - exact).max() < 2.5 / 4096


@pytest.mark.parametrize("scale", [32, 40, 48, 56, 64])
@pytest.mark.parametrize("shape", [1.0, 2.0])
def test_what_a_table_costs_is_the_entropy_of_its_density(shape, scale):
    exact = np.array([probability(shape, s, 0, sigma(scale)) for s in SYMBOLS])
    entropy = -(exact * np.log2(np.maximum(exact, 1e-300))).sum()
    cost = exact @ density.price_list(density.family(SHAPES.index(shape))[scale, 0])[SYMBOLS & 255]
    assert entropy <= cost <= entropy * 1.003 + 1e-3


def test_coded_size_is_the_ideal_one():
    rng = np.random.default_rng(0)
    symbols = np.clip(np.rint(rng.normal(size=200_000) * sigma(48)), -127, 127).astype(np.int8)
    freq = density.family(SHAPES.index(2.0))[48, 0]
    symbols[freq[symbols.view(np.uint8)] == 0] = density.ESCAPE
    ideal = float(density.price_list(freq)[symbols.view(np.uint8)].sum())
    assert len(rans.encode([(symbols, None)], freq[None], 16)) * 8 < ideal * 1.003


@given(st.lists(st.integers(0, 10**6), min_size=256, max_size=256), st.booleans())
def test_normalized_frequencies_are_shares_rounded(masses, escape):
    masses = np.array(masses, dtype=np.int64)
    masses[7] += 1
    freq = density.normalize(masses, escape).astype(int)
    share = masses * 4096 / masses.sum()
    assert freq.sum() == 4096
    assert np.abs(np.delete(freq - share, density.ESCAPE & 255)).max() < 1.5
    assert not escape or freq[density.ESCAPE & 255] >= 1


def test_a_symbol_without_mass_has_no_frequency():
    masses = np.zeros(256, dtype=np.int64)
    masses[[3, 250]] = 1, 2
    assert np.flatnonzero(density.normalize(masses, escape=False)).tolist() == [3, 250]
    assert density.normalize(masses)[density.ESCAPE & 255] == 1


def test_prices_are_bits_and_what_must_escape_pays_for_it():
    freq = np.zeros(256, dtype=np.uint16)
    freq[[0, 1, density.ESCAPE & 255]] = 2048, 2032, 16
    prices = density.price_list(freq)
    assert prices[0] == 1
    assert prices[density.ESCAPE & 255] == 8
    assert prices[2] == 16
