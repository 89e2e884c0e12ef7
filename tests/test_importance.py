"""What an error costs: the formula, its factors, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from waterfill.compression.allocation.without_data import (
    COLUMNS,
    ROWS,
    SIZE_EXPONENT,
    SMOOTHNESS,
    entrywise,
    expected_correlation,
    line_by_line,
    without_data,
)
from waterfill.errors import BadInput
from waterfill.importance import Importance, smooth_gram


def positive_definite(n: int, seed: int = 0) -> torch.Tensor:
    inputs = torch.randn(3 * n, n, generator=torch.Generator().manual_seed(seed))
    return inputs.T @ inputs / len(inputs)


def by_hand(importance: Importance, a: torch.Tensor, b: torch.Tensor) -> float:
    """sum_o g_o a_o A b_o^T with A written out, in float64."""
    cols = a.shape[1]
    if importance.gram is None:
        A = torch.diag(importance.diagonal.double().expand(cols))
    else:
        A = torch.kron(torch.eye(cols // len(importance.gram), dtype=torch.float64), importance.gram.double())
    g = importance.rows.double().expand(a.shape[0])
    return float(torch.einsum("o,oi,ij,oj->", g, a.double(), A, b.double()))


@given(st.integers(1, 7), st.integers(1, 5), st.sampled_from([(), (3,), (2, 2)]), st.integers(0, 1 << 20))
def test_inner_is_the_formula(rows, channels, kernel, seed):
    torch.manual_seed(seed)
    positions = math.prod(kernel)
    cols = channels * positions
    a, b = torch.randn(rows, cols), torch.randn(rows, cols)
    g, d = torch.rand(rows), torch.rand(cols)
    forms = [Importance(), Importance(g), Importance(g, d), Importance(g, gram=positive_definite(cols, seed))]
    if kernel:
        forms.append(Importance(g, gram=positive_definite(positions, seed), kernel=kernel))
    for importance in forms:
        importance.check(rows, cols)
        assert importance.inner(a, b) == pytest.approx(by_hand(importance, a, b), rel=1e-4, abs=1e-4)
        assert importance.distortion(a) == pytest.approx(0.5 * by_hand(importance, a, a), rel=1e-5)


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-42])
def test_products_beyond_float32(scale):
    error = torch.full((4, 5), scale)
    wanted = 0.5 * float((error.double() ** 2).sum())
    assert Importance().distortion(error) == pytest.approx(wanted, rel=1e-6)
    assert Importance(gram=torch.eye(5)).distortion(error) == pytest.approx(wanted, rel=1e-6)
    assert Importance().scaled(1 / wanted).distortion(error) == pytest.approx(1, rel=1e-6)
    assert Importance().distortion(torch.zeros(3, 3)) == 0


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_both_triangular_factors_give_the_gram_matrix_back(n):
    gram = positive_definite(n)
    importance = Importance(gram=gram)
    root, lower = importance.root.numpy(), importance.lower
    assert np.allclose(np.triu(root), root) and np.allclose(np.tril(lower), lower)
    assert np.allclose(root.T @ root, gram.numpy(), rtol=1e-6, atol=1e-6)
    assert np.allclose(lower.T @ lower, gram.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [2000, 30])
def test_wide_gram_matrices_have_a_float32_factor_singular_or_not(rank):
    inputs = torch.randn(rank, 700)  # several blocks, the last of them short
    gram = inputs.T @ inputs / rank
    lower = Importance(gram=gram).lower
    assert lower.dtype == np.float32 and np.array_equal(np.tril(lower), lower)
    assert np.allclose(lower.T.astype(np.float64) @ lower, gram.numpy(), atol=1e-5 * float(gram.abs().max()))


def test_a_singular_gram_matrix_is_damped():
    gram = torch.ones(6, 6)
    assert np.allclose(Importance(gram=gram).lower.T @ Importance(gram=gram).lower, gram.numpy(), atol=1e-6)
    assert np.isfinite(Importance(gram=torch.zeros(4, 4)).lower).all()


def test_smooth_gram_decays_with_distance():
    gram = smooth_gram((3, 3), 0.5)
    assert gram[0].tolist() == [1, 0.5, 0.25, 0.5, 0.25, 0.125, 0.25, 0.125, 0.0625]
    assert torch.equal(gram, gram.T)


@pytest.mark.parametrize("kernel", [(), (3, 3)])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_without_data_a_relative_error_costs_the_same_at_every_scale(kernel, scale):
    target = scale * torch.randn(16, 36)
    cost = without_data(target, kernel).distortion(0.1 * target) / (0.5 * 0.01 * target.numel() ** SIZE_EXPONENT)
    assert cost == pytest.approx(1, rel=1e-4) if not kernel else 1 <= cost < 1.5  # dearer where no smooth input shows
    assert cost == pytest.approx(
        200 * without_data(target / scale, kernel).distortion(0.1 * target / scale) / target.numel() ** SIZE_EXPONENT,
        rel=1e-4,
    )
    assert math.isfinite(without_data(torch.zeros(4, 9), kernel).distortion(torch.ones(4, 9)))


def test_inputs_are_taken_to_be_as_smooth_as_the_kernels():
    flat, white = torch.randn(64, 1).expand(64, 9).contiguous(), torch.randn(256, 9)
    edges = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0]]).expand(64, 9) * torch.randn(64, 1)
    assert expected_correlation(flat, (3, 3)) == SMOOTHNESS
    assert 0.1 < expected_correlation(white, (3, 3)) < 0.4
    assert expected_correlation(edges, (3, 3)) == 0


def test_kernels_of_differences_are_dear_and_their_errors_are_not_shaped():
    edges = torch.tensor([[0.0, 0, 0, -1, 2, -1, 0, 0, 0]]) * torch.randn(64, 1)
    found = without_data(edges, (3, 3))
    assert torch.equal(found.gram, torch.eye(9))
    flat = torch.ones(64, 9) / 3 * edges.norm() / 8
    assert found.distortion(0.1 * edges) > 1.5 * without_data(flat, (3, 3)).distortion(0.1 * flat)


@pytest.mark.parametrize("lines", [ROWS, COLUMNS])
def test_line_by_line_every_line_costs_its_own_relative_error(lines):
    scales = torch.logspace(-1, 1, 8)
    target = torch.randn(8, 8) * (scales[:, None] if lines == ROWS else scales)
    importance = line_by_line(target, lines)
    alone = []
    for i in range(8):
        error = torch.zeros(8, 8)
        error[(i,) if lines == ROWS else (slice(None), i)] = 0.1 * (target[i] if lines == ROWS else target[:, i])
        alone.append(importance.distortion(error))
    assert alone == pytest.approx([alone[0]] * 8, rel=1e-3)
    assert sum(alone) == pytest.approx(0.5 * 0.01 * 64**SIZE_EXPONENT, rel=1e-3)
    assert math.isfinite(line_by_line(torch.zeros(4, 4), lines).distortion(torch.ones(4, 4)))


def test_entrywise_costs_relative_errors_of_single_entries():
    vector = torch.tensor([[1e-3, 1.0, 1e3]])
    importance = entrywise(vector)
    alone = [importance.distortion(torch.eye(3)[i : i + 1] * vector * 0.1) for i in range(3)]
    assert alone[1] == pytest.approx(alone[2], rel=1e-3)
    assert math.isfinite(entrywise(torch.zeros(1, 3)).distortion(torch.ones(1, 3)))


def test_selected_rows_and_scaling():
    importance = Importance(torch.rand(6), torch.rand(4))
    error, index = torch.randn(6, 4), torch.tensor([1, 4])
    chosen = importance.select_rows(index).distortion(error[index])
    only = torch.zeros_like(error).index_copy(0, index, error[index])
    assert chosen == pytest.approx(importance.distortion(only), rel=1e-5)
    assert importance.scaled(7).distortion(error) == pytest.approx(7 * importance.distortion(error), rel=1e-5)


def test_halves_stay_with_their_matrix():
    first, second = positive_definite(6, 1), positive_definite(6, 2)
    importance = Importance(torch.rand(5), gram=(first + second) / 2, halves=(first, second))
    rows = torch.tensor([0, 3])
    others = [
        importance.scaled(2),
        importance.select_rows(rows),
        importance.select(rows, torch.arange(6)),
        replace(importance, damping=0.1),
    ]
    for other in others:
        assert other.halves is not None
        assert torch.equal(other.halves[0], first) and torch.equal(other.halves[1], second)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"rows": torch.tensor([1.0, float("nan")])}, "rows holds values that are not finite"),
        ({"diagonal": torch.tensor([float("inf")])}, "diagonal holds values that are not finite"),
        ({"gram": torch.full((2, 2), float("nan"))}, "gram holds values that are not finite"),
        ({"rows": torch.tensor([-1.0])}, "negative"),
        ({"diagonal": torch.tensor([-1.0])}, "negative"),
        ({"gram": torch.ones(2, 3)}, "square"),
        ({"gram": torch.ones(4)}, "square"),
        ({"gram": torch.eye(2), "halves": (torch.eye(2), torch.full((2, 2), float("nan")))}, "halves holds values"),
        ({"gram": torch.eye(2), "halves": (torch.full((2, 2), float("inf")), torch.eye(2))}, "halves holds values"),
        ({"gram": torch.eye(2), "halves": (torch.eye(2), torch.eye(3))}, r"\[2, 2\] and \[3, 3\] and it is \[2, 2\]"),
        ({"gram": torch.eye(2), "halves": (torch.ones(2), torch.eye(2))}, "halves of a Gram matrix have its shape"),
        ({"halves": (torch.eye(2), torch.eye(2))}, "there is none"),
    ],
)
def test_what_cannot_be_an_importance(arguments, told):
    with pytest.raises(BadInput, match=told):
        Importance(**arguments)


def test_an_indefinite_gram_matrix_is_refused():
    with pytest.raises(BadInput, match="positive semi-definite"):
        _ = Importance(gram=torch.tensor([[1.0, 5.0], [5.0, 1.0]])).root


@pytest.mark.parametrize(
    ("importance", "told"),
    [
        (Importance(torch.ones(3)), r"rows has shape \[3\], the weight needs \[4\]"),
        (Importance(diagonal=torch.ones(4)), r"diagonal has shape \[4\], the weight needs \[6\]"),
        (Importance(gram=torch.eye(5)), "5 wide, the weight has 6 columns"),
        (Importance(kernel=(2, 2)), "not a multiple"),
    ],
)
def test_shapes_that_do_not_fit(importance, told):
    with pytest.raises(BadInput, match=told):
        importance.check(4, 6)


def test_what_is_expected_counts_the_damping():
    gram = positive_definite(6)
    gram[:, 5] = gram[5] = 0  # never seen
    importance = Importance(torch.rand(4), gram=gram, damping=0.1)
    error = torch.zeros(4, 6)
    error[:, 5] = 1
    assert importance.distortion(error) == 0
    wanted = 0.5 * 0.1 * float(gram.diagonal().mean()) * float(importance.rows.sum())
    assert importance.expected(error) == pytest.approx(wanted, rel=1e-6)
    plain = Importance(torch.rand(4), torch.rand(6))
    assert plain.expected(error) == plain.distortion(error)
