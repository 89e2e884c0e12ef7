"""LowRank: Eckart-Young under every importance, and ranks that pay for themselves."""

import pytest
import torch

from waterfill.errors import BadRecipe
from waterfill.importance import Importance, smooth_gram
from waterfill.part import SumPart, cost
from waterfill.parts import LowRank, Quantize

FINE = 1e-12


def importances(rows: int, cols: int) -> dict[str, tuple[Importance, torch.Tensor]]:
    """Importances by name, each with its A [cols, cols] (float64)."""
    g, d = torch.rand(rows) + 0.1, torch.rand(cols) + 0.1
    inputs = torch.randn(4 * cols, cols) @ torch.randn(cols, cols)
    gram = inputs.T @ inputs / len(inputs)
    small = smooth_gram((2, 3), 0.7)
    return {
        "uniform": (Importance(), torch.eye(cols)),
        "diagonal": (Importance(rows=g, diagonal=d), torch.diag(d)),
        "gram": (Importance(rows=g, gram=gram), gram),
        "kernel": (Importance(rows=g, gram=small, kernel=(2, 3)), torch.block_diag(*[small] * (cols // 6))),
    }


@pytest.mark.parametrize("name", ["uniform", "diagonal", "gram", "kernel"])
@pytest.mark.parametrize("rank", [1, 3, 9])
def test_eckart_young(name: str, rank: int) -> None:
    rows, cols = 10, 18
    importance, A = importances(rows, cols)[name]
    target = torch.randn(rows, cols)
    g = importance.rows.double().expand(rows)
    eigenvalues, vectors = torch.linalg.eigh(A.double())
    half = vectors * eigenvalues.clamp_min(0).sqrt() @ vectors.T
    sigma = torch.linalg.svdvals(g.sqrt()[:, None] * target.double() @ half)
    part = LowRank(rank=rank).fit(target, importance, FINE)
    assert part.rank == rank
    assert importance.distortion(target - part.dense()) == pytest.approx(
        0.5 * float(sigma[rank:].square().sum()), rel=1e-3
    )


def test_few_inputs_do_not_decide_everything() -> None:
    """With fewer inputs than columns, the damping keeps a product of quantized factors good for other inputs too."""
    few, many = torch.randn(20, 60), torch.randn(4000, 60)
    truth = Importance(gram=many.T @ many / len(many))
    target = torch.randn(40, 4) @ torch.randn(4, 60)
    gram = few.T @ few / len(few)
    lost = [
        truth.distortion(target - LowRank(rank=4).fit(target, Importance(gram=gram, damping=d), 1e-2).dense())
        for d in (1e-8, 0.1)
    ]
    assert lost[1] < 0.1 * min(lost[0], truth.distortion(target))


@pytest.mark.parametrize("size", [1.0, 3.0])
def test_a_sum_in_the_metric_of_the_data(size: float) -> None:
    """Quantized codes and a product of ranks, both fitted to what the other leaves, cost less than either alone."""
    inputs = torch.randn(400, 64) @ (torch.eye(64) + 0.1 * torch.randn(64, 64))
    importance = Importance(gram=inputs.T @ inputs / 400)
    target = 0.3 * torch.randn(64, 64) + size * torch.randn(64, 2) @ torch.randn(2, 64)
    alone = [spec.fit(target, importance, 0.02) for spec in (Quantize(), LowRank())]
    both = (Quantize() + LowRank()).fit(target, importance, 0.02)
    costs = [cost(part, target, importance, 0.02) for part in (*alone, both)]
    assert isinstance(both, SumPart) and costs[2] < 0.99 * min(costs[:2])


def test_a_planted_rank_is_found() -> None:
    target = torch.randn(60, 3) @ torch.randn(3, 80) + 1e-3 * torch.randn(60, 80)
    assert LowRank().fit(target, Importance(), 1e-3).rank == 3


def test_a_dear_price_buys_no_rank() -> None:
    part = LowRank().fit(torch.randn(30, 40), Importance(), 1e3)
    assert part.rank == 0 and len(part.encode()) == 2
    assert torch.equal(part.apply(torch.randn(5, 40)), torch.zeros(5, 30))


def test_ranks_grow_as_the_price_falls() -> None:
    target = torch.randn(40, 60) @ torch.diag(0.8 ** torch.arange(60))
    ranks = [LowRank().fit(target, Importance(), price).rank for price in (1.0, 1e-1, 1e-2, 1e-3, 1e-4)]
    assert ranks == sorted(ranks) and ranks[0] < ranks[-1]


def test_a_rank_larger_than_the_matrix_is_the_matrix() -> None:
    target = torch.randn(5, 7)
    part = LowRank(rank=100).fit(target, Importance(), FINE)
    assert part.rank == 5 and torch.allclose(part.dense(), target, atol=1e-3)


def test_large_matrices_find_the_same_subspace() -> None:
    """Above 1,024 the decomposition is randomized, and stops where rank does not pay any more."""
    target = torch.randn(1100, 5) @ torch.randn(5, 1200) + 1e-2 * torch.randn(1100, 1200)
    part = LowRank().fit(target, Importance(), 1e-4)
    assert part.rank == 5
    assert 2 * Importance().distortion(target - part.dense()) < 1.05 * (1e-2**2 * target.numel())
    assert part == LowRank().fit(target, Importance(), 1e-4)


def test_left_factor_makes_up_for_the_right_one() -> None:
    """At a coarse price the factors are poor, yet their product stays near what rank 2 can reach."""
    target = torch.randn(200, 2) @ torch.randn(2, 50)
    part = LowRank(rank=2).fit(target, Importance(), 1e-2)
    assert part.bits < 8 * 500
    assert Importance().distortion(target - part.dense()) < 0.01 * Importance().distortion(target)


@pytest.mark.parametrize("rank", [-1, 2.5, "8"])
def test_bad_arguments(rank: object) -> None:
    with pytest.raises(BadRecipe, match="LowRank"):
        LowRank(rank=rank)
