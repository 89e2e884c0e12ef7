"""Prune: what is kept, how the rest is made up for, and what positions cost."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from waterfill.coding.stream import Writer
from waterfill.errors import BadRecipe, CorruptFile
from waterfill.importance import Importance, smooth_gram
from waterfill.part import cost, decode
from waterfill.parts import Codebook, Prune
from waterfill.parts.pruning.patterns import Blocks, Groups
from waterfill.parts.sparse import refit
from waterfill.recipe import parse

SPARSE_KIND = 6
FINE = 1e-10  # a price at which values are all but exact


def spread(rows: int, cols: int) -> torch.Tensor:
    """A matrix of distinct nonzero values."""
    return (torch.randperm(rows * cols) + 1.0).reshape(rows, cols) * torch.where(torch.rand(rows, cols) < 0.5, -1, 1)


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
def test_keep_is_exact(rows: int, cols: int, keep: float) -> None:
    target = torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows * 10 + cols))
    part = Prune(keep=keep).fit(target, Importance(), FINE)
    assert int(part.mask.sum()) == round(keep * rows * cols)


def test_the_largest_are_kept_and_equal_ones_in_order() -> None:
    target = torch.tensor([[1.0, -3.0, 2.0], [2.0, 0.5, -2.0]])
    part = Prune(keep=0.5).fit(target, Importance(), FINE)
    assert part.mask.tolist() == [[False, True, True], [True, False, False]]


def test_importance_decides_what_is_large() -> None:
    importance = Importance(rows=torch.tensor([1.0, 100.0]), diagonal=torch.tensor([1.0, 1.0, 100.0]))
    target = torch.tensor([[5.0, 5.0, 1.0], [1.0, 0.9, 0.05]])
    assert Prune(keep=1 / 3).fit(target, importance, FINE).mask.tolist() == [[False, False, True], [True, False, False]]


def test_entries_are_bought_one_by_one() -> None:
    target = spread(40, 40) / 1600
    kept = [float(Prune().fit(target, Importance(), price).mask.float().mean()) for price in (1e-1, 1e-2, 1e-3, 1e-4)]
    assert kept[0] == 0 and kept == sorted(kept) and kept[-1] > 0.5


def test_an_open_share_is_no_dearer_than_given_ones() -> None:
    target = torch.randn(60, 60) ** 3
    for price in (1e-2, 1e-1):
        chosen = cost(Prune().fit(target, Importance(), price), target, Importance(), price)
        for keep in (0.0, 0.02, 0.1, 0.3):
            given_share = Prune(keep=keep).fit(target, Importance(), price)
            assert chosen <= 1.01 * cost(given_share, target, Importance(), price)


@pytest.mark.parametrize(
    ("pattern", "cols"), [("2:4", 16), ("1:4", 16), ("4:8", 16), ("2:4", 15), ("2:4", 13), ("2:4", 2)]
)
def test_groups_keep_the_largest_of_each(pattern: str, cols: int) -> None:
    target = spread(6, cols)
    part = Prune(pattern=pattern).fit(target, Importance(), FINE)
    kept, size = map(int, pattern.split(":"))
    for row, mask in zip(target.abs(), part.mask, strict=True):
        for group, chosen in zip(row.split(size), mask.split(size), strict=True):
            assert set(group[chosen].tolist()) == set(sorted(group.tolist())[-kept:])
    assert decode(part.encode(), part.shape) == part


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7), st.integers(1, 7), st.integers(0, 1 << 30))
def test_scatter_undoes_gather(rows: int, cols: int, height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, cols, generator=generator)
    blocks = Blocks(min(height, rows), min(width, cols))
    mask = torch.rand(blocks.grid((rows, cols)), generator=generator) < 0.5
    values = blocks.gather(matrix, mask)
    assert tuple(values.shape) == blocks.values_shape(mask, (rows, cols))
    restored = blocks.scatter(values, mask, (rows, cols))
    kept = mask.repeat_interleave(blocks.height, 0).repeat_interleave(blocks.width, 1)[:rows, :cols]
    assert torch.equal(restored, matrix * kept)


@pytest.mark.parametrize(
    ("pattern", "shape"), [("rows", (3, 8)), ("columns", (6, 4)), ("entry", (1, 24)), ("3x2", (4, 6)), ("2:4", (6, 4))]
)
def test_values_keep_the_matrix_form(pattern: str, shape: tuple[int, int]) -> None:
    spec = Prune(pattern=pattern, keep=None if ":" in pattern else 0.5)
    assert spec.fit(spread(6, 8), Importance(), FINE).values.shape == shape


@pytest.mark.parametrize("kernel", [(), (2, 3)])
def test_refit_solves_the_normal_equations(kernel: tuple[int, ...]) -> None:
    inputs = torch.randn(40, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    importance = (
        Importance(gram=smooth_gram(kernel, 0.8), kernel=kernel) if kernel else Importance(gram=inputs.T @ inputs)
    )
    A = torch.kron(torch.eye(12 // len(importance.gram)), importance.gram.float()).double()
    target, support = torch.randn(5, 12), torch.rand(5, 12) < 0.5
    fitted = refit(target, support, importance)
    assert bool((fitted[~support] == 0).all())
    for w, v, s in zip(target.double(), fitted.double(), support, strict=True):
        wanted = torch.linalg.solve(A[s][:, s], (A @ w)[s])
        assert torch.allclose(v[s], wanted, rtol=1e-3, atol=1e-4)


def test_a_refit_lowers_the_distortion() -> None:
    inputs = torch.randn(200, 20) @ torch.randn(20, 20)
    importance = Importance(gram=inputs.T @ inputs / 200)
    target = torch.randn(8, 20)
    part = Prune(keep=0.5).fit(target, importance, FINE)
    assert importance.distortion(target - part.dense()) < 0.7 * importance.distortion(target * ~part.mask)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5])
def test_positions_cost_their_entropy(share: float) -> None:
    target = torch.where(torch.rand(300, 400) < share, 1.0, 0.0)
    p = float(target.mean())
    part = Prune(keep=p, values=Codebook(levels=1)).fit(target, Importance(), 1e-3)
    entropy = -target.numel() * (p * math.log2(p) + (1 - p) * math.log2(1 - p))
    assert torch.equal(part.dense(), target)
    assert entropy - 16 < part.bits < 1.05 * entropy + 160


def test_groups_cost_the_logarithm_of_their_choices() -> None:
    part = Prune(pattern="2:4", values=Codebook(levels=1)).fit(torch.rand(100, 400), Importance(), 1e-3)
    assert part.bits == pytest.approx(10000 * math.log2(6), rel=0.02)


def test_nothing_kept_takes_a_few_bytes() -> None:
    part = Prune(keep=0.0).fit(torch.randn(100, 100), Importance(), 1.0)
    assert part.values is None and len(part.encode()) <= 6
    assert torch.equal(part.dense(), torch.zeros(100, 100))


@pytest.mark.parametrize("gap", [4, 5, -1, 1 << 20])
def test_positions_outside_of_the_matrix_are_corrupt(gap: int) -> None:
    out = Writer()
    for number in (SPARSE_KIND, 1, 1, 2):  # single entries, one of them kept
        out.uint(number)
    out.ints([gap])
    with pytest.raises(CorruptFile):
        decode(out.finish(), (2, 2))


@pytest.mark.parametrize(("kept", "size"), [(0, 4), (4, 4), (8, 16), (5, 2)])
def test_groups_that_cannot_be_are_corrupt(kept: int, size: int) -> None:
    out = Writer()
    for number in (SPARSE_KIND, 0, kept, size):
        out.uint(number)
    out.raw(bytes(40))
    with pytest.raises(CorruptFile, match="pattern"):
        decode(out.finish(), (4, 4))


def test_a_short_group_that_keeps_too_little_is_corrupt() -> None:
    groups = Groups(2, 4)
    mask = groups.select(torch.rand(2, 6))
    mask[0, 4] = False
    out = Writer()
    out.uint(SPARSE_KIND)
    groups.write(mask, groups.plan(mask), out)
    with pytest.raises(CorruptFile, match="group"):
        decode(out.finish(), (2, 6))


@pytest.mark.parametrize(
    "arguments",
    [
        {"criterion": "guess"},
        {"keep": 1.5},
        {"keep": -0.1},
        {"pattern": "stars"},
        {"pattern": "0x4"},
        {"pattern": "4:4"},
        {"pattern": "8:16"},
    ],
)
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(BadRecipe, match="Prune"):
        Prune(**arguments)


def test_recipes_name_the_criterion() -> None:
    spec = Prune(keep=0.5, criterion="hessian")
    assert repr(spec) == "Prune(keep=0.5, criterion='hessian')" and parse(repr(spec)) == spec
    assert repr(Prune()) == "Prune()"


def test_groups_and_a_share_contradict() -> None:
    with pytest.raises(BadRecipe, match="leave out keep"):
        Prune(keep=0.5, pattern="2:4")
