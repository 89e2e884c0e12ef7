"""The numbers beside codes as something to be trained: what is restored is what is written."""

import pytest
import torch

from waterfill.importance import Importance
from waterfill.model.entry import encode
from waterfill.parts import by_numbers
from waterfill.recipe import as_spec

ROWS, COLS = 12, 18
SCALED = Importance(rows=torch.logspace(0, 3, ROWS), diagonal=torch.logspace(0, 2, COLS))
SPECS = (
    "Quantize()",
    "Quantize(states=8)",
    "Quantize(bits=4, group=5)",
    "Quantize(bits=3, group=4, symmetric=False)",
    "Codebook(levels=5)",
    "Codebook(values='binary')",
    "Codebook(values='ternary')",
    "Prune(keep=0.2)",
    "Prune(pattern='columns', keep=0.5, values=Dense(mantissa=4))",
    "LowRank(rank=2)",
    "Codebook(levels=2) + Prune(keep=0.05)",
)


def part_of(spec: str, importance: Importance = SCALED):
    target = torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(1))
    return as_spec(spec).fit(target, importance, 1e-2)


@pytest.mark.parametrize("spec", SPECS)
def test_no_change_is_the_part_itself(spec) -> None:
    part = part_of(spec)
    numbers = by_numbers(part)
    assert numbers.leaves and all(not bool(leaf.any()) for leaf in numbers.leaves)
    torch.testing.assert_close(numbers.restore(numbers.leaves), part.dense(), rtol=1e-6, atol=1e-6)
    assert encode((numbers.rebuilt(numbers.leaves),)) == encode((part,))


@pytest.mark.parametrize("spec", SPECS)
def test_changes_are_written_as_they_were_trained(spec) -> None:
    part = part_of(spec)
    numbers = by_numbers(part)
    generator = torch.Generator().manual_seed(2)
    given = [0.05 * torch.randn(leaf.shape, generator=generator).requires_grad_() for leaf in numbers.leaves]
    restored = numbers.restore(given)
    rebuilt = numbers.rebuilt([one.detach() for one in given])
    size = float(part.dense().abs().max())
    torch.testing.assert_close(rebuilt.dense(), restored.detach(), rtol=0.02, atol=0.02 * size)  # float16, mantissas
    assert not torch.equal(rebuilt.dense(), part.dense())
    slopes = torch.autograd.grad(restored.square().sum(), given)
    assert all(bool(torch.isfinite(slope).all()) for slope in slopes) and any(bool(slope.any()) for slope in slopes)


def test_scales_stay_eighths_of_octaves_and_gradients_pass() -> None:
    numbers = by_numbers(part_of("Quantize()"))
    assert [list(leaf.shape) for leaf in numbers.leaves] == [[1], [ROWS], [COLS]]
    step, rows, cols = (leaf.clone().requires_grad_() for leaf in numbers.leaves)
    with torch.no_grad():
        rows += 0.04  # less than half of an eighth
    restored = numbers.restore([step, rows, cols])
    torch.testing.assert_close(restored.detach(), part_of("Quantize()").dense(), rtol=1e-6, atol=1e-7)
    (slope,) = torch.autograd.grad(restored.square().sum(), rows)
    torch.testing.assert_close(slope, 2 * restored.detach().square().sum(1), rtol=1e-4, atol=1e-6)


def test_symmetric_levels_stay_symmetric_and_zero_stays() -> None:
    numbers = by_numbers(part_of("Codebook(values='ternary')", Importance()))
    rebuilt = numbers.rebuilt([torch.tensor([0.3, 0.2, -0.1])])
    assert rebuilt.book[1] == 0 and rebuilt.book[0] == -rebuilt.book[2]


def test_levels_that_change_their_order_keep_their_entries() -> None:
    part = part_of("Codebook(levels=5)", Importance())
    numbers, change = by_numbers(part), [torch.tensor([0.0, 9.0, -1.0, 0.0, 0.0])]
    rebuilt = numbers.rebuilt(change)
    assert list(rebuilt.book) == sorted(rebuilt.book)
    torch.testing.assert_close(rebuilt.dense(), numbers.restore(change), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("change", [float("nan"), float("inf")])
def test_levels_that_are_no_numbers_stay_as_they_were(change) -> None:
    part = part_of("Codebook(levels=5)", Importance())
    assert by_numbers(part).rebuilt([torch.full((5,), change)]) is part


@pytest.mark.parametrize("change", [-1e30, 1e30, float("nan"), float("inf")])
@pytest.mark.parametrize("spec", ["Quantize()", "Quantize(bits=4, group=5)", "Prune(keep=0.2)"])
def test_what_is_written_is_finite(spec, change) -> None:
    numbers = by_numbers(part_of(spec))
    rebuilt = numbers.rebuilt([torch.full_like(leaf, change) for leaf in numbers.leaves])
    assert bool(torch.isfinite(rebuilt.dense().float()).all())


@pytest.mark.parametrize(
    "spec", ["Dense()", "Dense(format='lossless')", "Codebook(values='powers', levels=9)", "Sampled()"]
)
def test_what_has_no_numbers_to_train_is_constant(spec) -> None:
    part = part_of(spec)
    numbers = by_numbers(part)
    assert numbers.leaves == () and numbers.rebuilt([]) is part
    assert torch.equal(numbers.restore([]), part.dense().float())
