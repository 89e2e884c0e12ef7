"""Prune: what is kept, how the rest is made up for, and what positions cost."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from waterfill.coding.stream import Writer
from waterfill.errors import BadRecipe, CorruptFile
from waterfill.importance import Importance, smooth_gram
from waterfill.part import SumPart, cost, decode
from waterfill.parts import Codebook, LowRank, Prune, Quantize
from waterfill.parts.saliency import CRITERIA
from waterfill.parts.sparse import refit
from waterfill.parts.support import Blocks, Groups
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


def correlated(rows: int, cols: int) -> tuple[torch.Tensor, Importance]:
    """A weight, and a Gram matrix of inputs that resemble each other and differ in size."""
    mixing = torch.eye(cols) + 0.1 * torch.randn(cols, 6) @ torch.randn(6, cols) + 0.7 / cols
    inputs = torch.randn(4 * cols, cols) @ mixing
    return torch.randn(rows, cols), Importance(rows=torch.rand(rows) + 0.5, gram=inputs.T @ inputs / len(inputs))


def left(spec: Prune, target: torch.Tensor, importance: Importance) -> float:
    return importance.distortion(target - spec.fit(target, importance, FINE).dense())


@pytest.mark.parametrize("pattern", ["entry", "rows", "columns", "1x4", "2:4"])
def test_surgery_leaves_less_than_activations(pattern: str) -> None:
    target, importance = correlated(32, 48)
    keep = None if ":" in pattern else 0.5
    lost = {c: left(Prune(keep=keep, pattern=pattern, criterion=c), target, importance) for c in CRITERIA}
    print(pattern, lost)
    assert lost["hessian"] < 0.95 * lost["activation"]
    assert lost["auto"] < 0.95 * lost["activation"]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("pattern", ["entry", "rows", "columns", "4x3", "2:4", "1:5"])
def test_every_criterion_for_every_pattern(criterion: str, pattern: str) -> None:
    """The share that is asked for is kept exactly, and all kept values are the best ones on their support."""
    target, importance = correlated(10, 13)
    part = Prune(keep=None if ":" in pattern else 0.4, pattern=pattern, criterion=criterion).fit(
        target, importance, FINE
    )
    if ":" not in pattern:
        assert int(part.mask.sum()) == round(0.4 * part.mask.numel())
    support = part.pattern.scatter(torch.ones(part.values.shape), part.mask, (10, 13)) > 0
    error = (target - part.dense()) @ importance.gram
    assert float(error[support].abs().max()) < 1e-3 * float((target @ importance.gram).abs().max())
    assert decode(part.encode(), part.shape) == part


def test_surgery_without_correlation_is_magnitude_times_input() -> None:
    """A diagonal Gram matrix: nothing can be made up for, so the saliency is g A_ii w^2."""
    target, diagonal, rows = spread(12, 20), torch.rand(20) + 0.1, torch.rand(12) + 0.1
    gram = Importance(rows=rows, gram=torch.diag(diagonal))
    mask = Prune(keep=0.3, criterion="hessian").fit(target, gram, FINE).mask
    gain = (target.square() * torch.outer(rows, diagonal)).flatten()
    assert set(mask.flatten().nonzero()[:, 0].tolist()) == set(gain.argsort(descending=True)[:72].tolist())


def test_the_saliency_is_what_a_column_costs_when_the_others_make_up_for_it() -> None:
    target, importance = correlated(6, 9)
    for pattern, count in (("columns", 8), ("entry", 53)):
        part = Prune(keep=count / (9 if pattern == "columns" else 54), pattern=pattern, criterion="hessian")
        found = left(part, target, importance)
        alone = [torch.ones(6, 9, dtype=torch.bool) for _ in range(9 if pattern == "columns" else 54)]
        for i, support in enumerate(alone):
            support[(slice(None), i) if pattern == "columns" else divmod(i, 9)] = False
        errors = [importance.distortion(target - refit(target, support, importance)) for support in alone]
        if pattern == "columns":
            assert found == pytest.approx(min(errors), rel=1e-3)
        else:
            assert found < sorted(errors)[len(errors) // 4]


def test_activations_are_compared_within_rows() -> None:
    target = spread(8, 20) * 10.0 ** torch.arange(8)[:, None]
    mask = Prune(keep=0.25, criterion="activation").fit(target, Importance(), FINE).mask
    assert mask.sum(1).tolist() == [5] * 8
    assert all(set(w[m].tolist()) == set(sorted(w.tolist())[-5:]) for w, m in zip(target.abs(), mask, strict=True))


def test_magnitude_looks_at_nothing_else() -> None:
    target = spread(6, 8)
    importance = Importance(rows=torch.rand(6), diagonal=torch.rand(8))
    mask = Prune(keep=0.5, criterion="magnitude").fit(target, importance, FINE).mask
    assert float(target.abs()[mask].min()) > float(target.abs()[~mask].max())


@pytest.mark.parametrize("pattern", ["entry", "columns", "2x2"])
def test_surgery_buys_by_the_price(pattern: str) -> None:
    target, importance = correlated(30, 40)
    kept, costs = [], []
    for price in (1.0, 1e-2, 1e-4):
        parts = {c: Prune(pattern=pattern, criterion=c).fit(target, importance, price) for c in CRITERIA}
        kept.append(float(parts["hessian"].mask.float().mean()))
        costs.append({c: cost(part, target, importance, price) for c, part in parts.items()})
    assert kept == sorted(kept) and kept[0] < kept[-1]
    assert all(found["hessian"] < 1.05 * found["magnitude"] for found in costs)
    assert all(found["auto"] < 1.05 * min(found.values()) for found in costs)


def test_importance_of_no_data_changes_nothing() -> None:
    """A spatial kernel's Gram matrix is an assumption: the automatic criterion is the one without correlations."""
    target, importance = torch.randn(12, 18), Importance(gram=smooth_gram((3, 3), 0.7), kernel=(3, 3))
    for keep in (0.3, None):
        found = Prune(keep=keep).fit(target, importance, 1e-2).mask
        gain = target.square() * importance.gram.diagonal().repeat(2)
        assert float(gain[found].min()) > float(gain[~found].max())


@pytest.mark.parametrize("other", [Prune(), LowRank()])
def test_a_sum_never_costs_more_than_its_best_term(other: Prune | LowRank) -> None:
    target, importance = correlated(40, 36)
    target = target + (torch.rand(40, 36) < 0.02) * 20
    for price in (1e-1, 1.0):
        terms = [spec.fit(target, importance, price) for spec in (Quantize(), other)]
        both = (Quantize() + other).fit(target, importance, price)
        assert cost(both, target, importance, price) <= min(cost(t, target, importance, price) for t in terms)


def test_outliers_beside_codes_in_the_metric_of_the_data() -> None:
    target, importance = correlated(64, 64)
    target = 0.1 * target + (torch.rand(64, 64) < 0.01) * 30
    price = 0.2
    alone = min(cost(s.fit(target, importance, price), target, importance, price) for s in (Quantize(), Prune()))
    both = (Quantize() + Prune()).fit(target, importance, price)
    assert isinstance(both, SumPart) and cost(both, target, importance, price) < 0.95 * alone


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
