"""Codebook: exhaustive searches, textbook quantizers, and what its bytes may be."""

from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from waterfill.coding.stream import Writer
from waterfill.errors import BadRecipe, CorruptFile
from waterfill.importance import Importance
from waterfill.part import cost, decode
from waterfill.parts import Codebook
from waterfill.parts.clustering import closed_forms, kmeans

values = st.lists(st.integers(-40, 40).map(lambda k: k / 8), min_size=2, max_size=7)
CODEBOOK_KIND = 5


def weights_for(x: list[float]) -> torch.Tensor:
    return torch.linspace(0.25, 2.0, len(x))


def squared_error(x: np.ndarray, w: np.ndarray, book: np.ndarray) -> float:
    return float((w[:, None] * (x[:, None] - book) ** 2).min(1).sum())


def best_partition(x: np.ndarray, w: np.ndarray, k: int) -> float:
    """The least weighted squared error of all splits of the sorted values into at most k runs."""
    order = np.argsort(x)
    x, w = x[order], w[order]
    errors = []
    for cuts in combinations(range(1, len(x)), min(k, len(x)) - 1):
        runs = np.split(np.arange(len(x)), cuts)
        means = [np.average(x[run], weights=w[run]) for run in runs]
        errors.append(sum(float((w[run] * (x[run] - m) ** 2).sum()) for run, m in zip(runs, means, strict=True)))
    return min(errors)


@given(values, st.integers(1, 5))
def test_levels_are_the_best_of_all_partitions(x: list[float], k: int) -> None:
    target = torch.tensor([x])
    importance = Importance(diagonal=weights_for(x))
    part = Codebook(levels=k).fit(target, importance, 1e-12)
    wanted = 0.5 * best_partition(target[0].double().numpy(), weights_for(x).double().numpy(), k)
    assert importance.distortion(target - part.dense()) == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@given(values)
def test_binary_and_ternary_are_the_best_of_all_assignments(x: list[float]) -> None:
    values_, w = np.array(x), weights_for(x).double().numpy()
    for find, signs in ((closed_forms.binary, (-1, 1)), (closed_forms.ternary, (-1, 0, 1))):
        errors = []
        for pattern in product(signs, repeat=len(x)):
            s = np.array(pattern)
            a = (w * s * values_).sum() / max((w * s * s).sum(), 1e-300)
            errors.append((w * (values_ - a * s) ** 2).sum())
        assert squared_error(values_, w, find(values_, w)) == pytest.approx(min(errors), abs=1e-9)


@pytest.mark.parametrize(("levels", "half", "error"), [(2, [0.7979], 0.3634), (4, [0.4528, 1.510], 0.1175)])
def test_lloyd_max_of_a_gaussian(levels: int, half: list[float], error: float) -> None:
    """The textbook optimal quantizers (Max, 1960), from far more distinct values than there are bins."""
    quantiles = torch.special.ndtri((torch.arange(40000, dtype=torch.float64) + 0.5) / 40000).float()
    part = Codebook(levels=levels).fit(quantiles.reshape(200, 200), Importance(), 1e-12)
    assert part.book[levels // 2 :].tolist() == pytest.approx(half, abs=2e-3)
    assert 2 * Importance().distortion(quantiles.reshape(200, 200) - part.dense()) / 40000 == pytest.approx(
        error, abs=1e-3
    )


def test_all_sizes_up_to_the_number_of_values() -> None:
    x = np.arange(9, dtype=np.float32) ** 2
    books = list(kmeans.optimal_levels(kmeans.collect(x, np.ones(9, dtype=np.float32)), 256))
    assert [len(book) for book in books] == list(range(1, 10))
    assert books[-1] == pytest.approx(x)


def test_open_size_beats_every_given_size() -> None:
    target = torch.randn(64, 64)
    for price in (1e-4, 1e-2):
        chosen = cost(Codebook().fit(target, Importance(), price), target, Importance(), price)
        for levels in (1, 2, 4, 8, 16, 32, 64):
            given_size = Codebook(levels=levels).fit(target, Importance(), price)
            assert chosen <= cost(given_size, target, Importance(), price)


def test_powers_of_two() -> None:
    target = torch.randn(32, 32)
    part = Codebook(levels=9, values="powers").fit(target, Importance(), 1e-6)
    magnitudes = part.dense().abs().unique()
    assert magnitudes[0] == 0 and bool((magnitudes[1:].log2() % 1 == 0).all())
    nearest = (target.reshape(-1, 1) - torch.from_numpy(part.book)).abs().min(1).values
    assert torch.equal((target - part.dense()).abs().reshape(-1), nearest)


def test_a_symmetric_book_is_stored_by_half() -> None:
    target = torch.tensor([[-0.5, 0.5, -0.5, 0.5]] * 4)
    part = Codebook(values="binary").fit(target, Importance(), 1e-6)
    assert part.encode()[:2] == bytes([CODEBOOK_KIND, 2 << 2 | 0b11])  # two levels, symmetric, bfloat16
    assert part.encode()[2:4] == b"\x00\x3f"  # 0.5
    assert torch.equal(part.dense(), target)


def test_a_dear_book_is_rounded_to_bfloat16() -> None:
    target = torch.randn(16, 16)
    cheap, dear = (Codebook(levels=8).fit(target, Importance(), price).book for price in (1e-12, 1.0))
    assert (cheap.view(np.uint32) & 0xFFFF).any()
    assert not (dear.view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize(
    "book",
    [[1.0, 1.0], [2.0, 1.0], [0.0, float("nan")], [0.0, float("inf")]],
    ids=["equal", "falling", "nan", "infinite"],
)
def test_a_book_that_is_not_ascending_is_corrupt(book: list[float]) -> None:
    out = Writer()
    out.uint(CODEBOOK_KIND)
    out.uint(len(book) << 2)
    out.raw(np.array(book, dtype="<f4").tobytes() + bytes(16))
    with pytest.raises(CorruptFile, match="levels"):
        decode(out.finish(), (2, 2))


@pytest.mark.parametrize("arguments", [{"levels": 0}, {"levels": 257}, {"levels": 2.5}, {"values": "cubes"}])
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(BadRecipe, match="Codebook"):
        Codebook(**arguments)


def test_levels_must_suit_the_values() -> None:
    assert Codebook(levels=3, values="ternary").levels == 3
    with pytest.raises(BadRecipe, match="ternary"):
        Codebook(levels=4, values="ternary")
