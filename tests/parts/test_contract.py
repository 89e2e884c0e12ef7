"""Every kind of part keeps the contract of `waterfill.testing`: the kinds found by themselves, arguments and sums."""

import pytest
import torch

import waterfill.parts
from waterfill.errors import CorruptFile
from waterfill.importance import Importance, smooth_gram
from waterfill.part import SumSpec, cost, decode
from waterfill.recipe import kinds, parse
from waterfill.testing import Case, check_round_trip, check_size, check_spec, sample_target

OURS = [name for name, kind in kinds().items() if kind.__module__.startswith(waterfill.parts.__name__)]
VARIED = [
    "Codebook(levels=5)",
    "Codebook(values='ternary')",
    "Codebook(values='powers')",
    "Prune(keep=0.1)",
    "Prune(pattern='2:4', values=Codebook(levels=4))",
    "Prune(pattern='5x7')",
    "Prune(keep=0.5, pattern='rows')",
    "Prune(keep=0.3, pattern='columns')",
    "LowRank(rank=3)",
    "LowRank(rank=0)",
    "LowRank(rank=2, factors=Codebook(levels=16))",
    "Sampled(family='uniform', seed=7)",
    "Quantize() + Prune(keep=0.02)",
    "LowRank(rank=1) + Codebook(values='binary')",
    "Codebook(levels=4) | LowRank(rank=2)",
]
PLAIN = [
    "Codebook()",
    "Codebook(values='binary')",
    "Prune(keep=0.2)",
    "Prune()",
    "LowRank()",
    "Quantize()",
    "Sampled()",
]


def gram(cols: int) -> torch.Tensor:
    """A Gram matrix [cols, cols] of correlated inputs, one of which is dead."""
    inputs = torch.randn(3 * cols, cols) @ (torch.eye(cols) + 0.2 * torch.randn(cols, cols))
    inputs[:, 3] = 0
    return inputs.T @ inputs / len(inputs)


def test_every_kind_is_found() -> None:
    assert {"Codebook", "Dense", "LowRank", "Prune", "Quantize", "Sampled"} <= set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_kinds(name: str) -> None:
    check_spec(kinds()[name]())


@pytest.mark.parametrize("recipe", VARIED)
def test_arguments_and_sums(recipe: str) -> None:
    check_spec(parse(recipe)) if "+" not in recipe else check_sum_spec(parse(recipe))


def check_sum_spec(spec: SumSpec) -> None:
    """What `check_spec` does, but for adding the sum to itself: a sum has at most four terms, and is slow."""
    case = Case()
    part = case.fit(spec)
    check_round_trip(part)
    check_size(part)
    alone = (cost(case.fit(term), case.target, case.importance, case.price) for term in spec.terms)
    assert cost(part, case.target, case.importance, case.price) <= min(alone) * (1 + 1e-6)


@pytest.mark.parametrize("recipe", PLAIN)
@pytest.mark.parametrize("kind", ["diagonal", "gram", "kernel"])
def test_importances(recipe: str, kind: str) -> None:
    rows, cols = 12, 18
    g = torch.rand(rows)
    importance = {
        "diagonal": Importance(rows=g, diagonal=torch.rand(cols)),
        "gram": Importance(rows=g, gram=gram(cols)),
        "kernel": Importance(rows=g, gram=smooth_gram((3, 3), 0.5), kernel=(3, 3)),
    }[kind]
    target = sample_target(rows, cols)
    case = Case(target, importance, 1e-5)
    part = case.fit(parse(recipe))
    check_round_trip(part)
    check_size(part)
    if recipe != "Sampled()":
        assert importance.distortion(target - part.dense()) < importance.distortion(target)


TARGETS = {
    "one entry": torch.tensor([[0.3]]),
    "one row": torch.linspace(-1, 1, 17)[None],
    "one column": torch.linspace(-1, 1, 17)[:, None],
    "zeros": torch.zeros(6, 10),
    "constant": torch.full((6, 10), -0.7),
    "rank one": torch.outer(torch.linspace(-1, 1, 9), torch.linspace(1, 2, 11)),
    "tiny": torch.randn(5, 7, generator=torch.Generator().manual_seed(4)) * 1e-30,
    "huge": torch.randn(5, 7, generator=torch.Generator().manual_seed(5)) * 1e15,
}


@pytest.mark.parametrize("recipe", [*PLAIN, "Prune(pattern='2:4')", "Prune(pattern='3x2')", "LowRank(rank=2)"])
@pytest.mark.parametrize("name", TARGETS)
def test_degenerate_targets(recipe: str, name: str) -> None:
    target = TARGETS[name]
    for price in (1e-6, 1.0):
        part = Case(target, Importance(), price).fit(parse(recipe))
        assert bool(torch.isfinite(part.dense()).all())
        check_round_trip(part)
        check_size(part)


@pytest.mark.parametrize("recipe", PLAIN)
def test_errors_that_cost_nothing(recipe: str) -> None:
    target = sample_target(6, 8)
    nothing = Importance(rows=torch.zeros(6))
    part = Case(target, nothing).fit(parse(recipe))
    assert bool(torch.isfinite(part.dense()).all())
    check_round_trip(part)


@pytest.mark.parametrize("level", [b"\x01\x02", b"\x07\x01"], ids=["sum", "low rank"])
def test_endless_nesting_is_corrupt(level: bytes) -> None:
    with pytest.raises(CorruptFile):
        decode(level * 3000, (4, 4))
