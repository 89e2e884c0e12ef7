"""Sampled: the same numbers on every machine, with the moments of their density."""

import math

import numpy as np
import pytest
import torch

from waterfill.coding.density_tables import SHAPES
from waterfill.errors import BadRecipe
from waterfill.importance import Importance
from waterfill.part import decode
from waterfill.parts import Sampled
from waterfill.parts.sampled import UNIFORM, SampledPart, draw

UNIT = 2.0**-24


def test_the_generator_is_splitmix64() -> None:
    """The published outputs of SplitMix64 from seed 1234567, as signs and uniform magnitudes."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    wanted = [((z >> 34 & (1 << 29) - 1) * 29058990 >> 29) * (-1) ** (z >> 63) for z in published]
    assert draw(UNIFORM, 1234567, np.arange(5, dtype=np.uint64)).tolist() == wanted


@pytest.mark.parametrize("family", range(UNIFORM + 1))
def test_moments(family: int) -> None:
    """Mean, deviation, and the mean magnitude of a generalized Gaussian: G(2/b) / sqrt(G(1/b) G(3/b))."""
    x = draw(family, 3, np.arange(200000, dtype=np.uint64)) * UNIT
    b = SHAPES[family] if family < UNIFORM else math.inf
    magnitude = (
        math.sqrt(3) / 2 if b == math.inf else math.gamma(2 / b) / math.sqrt(math.gamma(1 / b) * math.gamma(3 / b))
    )
    assert abs(x.mean()) < 0.01
    assert x.std() == pytest.approx(1, abs=0.02)
    assert np.abs(x).mean() == pytest.approx(magnitude, abs=0.01)


def test_known_values() -> None:
    """Never to change: files that hold this kind depend on it."""
    families = [draw(family, 42, np.arange(3, dtype=np.uint64)).tolist() for family in (0, 3, 8, UNIFORM)]
    assert families == [
        [-4046216, 2032110, 5347329],
        [-7830414, 4572863, 9665958],
        [-10875468, 6915997, 12876444],
        [-14039262, 9293668, 16191734],
    ]
    dense = SampledPart((1, 3), SHAPES.index(2.0), UNIT, 42).dense()
    assert dense.tolist() == [[-0.6482284069061279, 0.41222554445266724, 0.76749587059021]]


def test_entries_do_not_depend_on_the_shape() -> None:
    tall, wide = (SampledPart(shape, 3, UNIT, 9).dense() for shape in ((6, 2), (2, 6)))
    assert torch.equal(tall.flatten(), wide.flatten())


@pytest.mark.parametrize(("beta", "name"), [(1.0, "laplace"), (2.0, "normal"), (None, "uniform")])
def test_the_likeliest_family_is_chosen(beta: float | None, name: str) -> None:
    family = UNIFORM if beta is None else SHAPES.index(beta)
    target = SampledPart((100, 100), family, 0.1 * UNIT, 1).dense()
    assert Sampled().fit(target, Importance(), 1.0) == Sampled(family=name).fit(target, Importance(), 1.0)


def test_the_deviation_is_kept_and_the_size_is_a_few_bytes() -> None:
    target = 0.3 * torch.randn(120, 120)
    part = Sampled().fit(target, Importance(), 1.0)
    assert float(part.dense().std()) == pytest.approx(float(target.std()), rel=0.02)
    assert len(part.encode()) <= 8


def test_distortion_is_honest() -> None:
    """A draw is independent of the target, so errors have twice its energy: it keeps the density, not the weights."""
    target = torch.randn(200, 200)
    part = Sampled().fit(target, Importance(), 1.0)
    ratio = Importance().distortion(target - part.dense()) / Importance().distortion(target)
    assert ratio == pytest.approx(2, abs=0.05)


def test_seeds_differ_and_are_stored() -> None:
    target = torch.randn(20, 20)
    one, other = (Sampled(seed=seed).fit(target, Importance(), 1.0) for seed in (1, (1 << 63) - 1))
    assert not torch.equal(one.dense(), other.dense())
    assert decode(other.encode(), other.shape).seed == (1 << 63) - 1


@pytest.mark.parametrize("arguments", [{"family": "cauchy"}, {"seed": -1}, {"seed": 1 << 63}, {"seed": 0.5}])
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(BadRecipe, match="Sampled"):
        Sampled(**arguments)
