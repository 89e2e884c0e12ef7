"""The product of two float32 matrices: one order, one rounding after each operation, on every machine."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterfill.coding import native
from waterfill.coding.exact_product import exact_product


def by_the_document(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """docs/format.md in plain Python: float64 holds a product of two float32 whole, and a sum rounds as if it were."""
    out = np.zeros((len(left), right.shape[1]), np.float32)
    for (r, c), _ in np.ndenumerate(out):
        total = np.float32(0)
        for k in range(left.shape[1]):
            product = np.float32(float(left[r, k]) * float(right[k, c]))
            total = np.float32(float(total) + float(product))
        out[r, c] = total
    return out


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype == np.float32 and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture(params=["compiled", "reference"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "reference":
        monkeypatch.setattr(native, "core", None)
    elif native.core is None:
        pytest.skip("needs the compiled core: make native")
    return str(request.param)


@pytest.mark.parametrize(
    ("rows", "rank", "cols"),
    [(1, 1, 1), (2, 4, 16), (3, 5, 17), (5, 8, 300), (4, 3, 257), (1, 9, 33), (7, 0, 5), (0, 2, 3), (3, 2, 0)],
)
def test_it_is_what_the_document_says(form: str, rows: int, rank: int, cols: int) -> None:
    left, right = (np.random.randn(*shape).astype(np.float32) for shape in ((rows, rank), (rank, cols)))
    assert same(exact_product(left, right), by_the_document(left, right))


def test_products_are_rounded_and_not_fused(form: str) -> None:
    """(1 + e)^2 - (1 + 2 e) is e^2 if the product is kept whole, and nothing once it is rounded."""
    e = np.float32(2.0**-13)
    left, right = np.array([[-(1 + 2 * e), 1 + e]], np.float32), np.array([[1], [1 + e]], np.float32)
    assert exact_product(left, right).tolist() == [[0.0]]


def test_sums_go_up_in_order(form: str) -> None:
    left, right = np.array([[1, 2.0**24, -(2.0**24), 1]], np.float32), np.ones((4, 20), np.float32)
    assert exact_product(left, right).tolist() == [[1.0] * 20]  # the first one is lost beside 2^24


def test_signs_of_zero_small_numbers_and_what_leaves_the_range(form: str) -> None:
    left = np.array([[-0.0, -1.0], [1e-30, 1e-30], [3e38, 3e38], [3e38, -3e38]], np.float32)
    right = np.array([[1.0, 1e-12, 3e38], [0.0, 0.0, 3e38]], np.float32)
    found = exact_product(left, right)
    assert not np.signbit(found[0, :2]).any()  # a sum begins with plus zero
    assert 0 < found[1, 1] < np.finfo(np.float32).tiny
    assert found[2, 2] == np.inf and np.isnan(found[3, 2])


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_both_forms_agree(rows: int, rank: int, cols: int, seed: int) -> None:
    if native.core is None:
        pytest.skip("needs the compiled core: make native")
    random = np.random.default_rng(seed)
    left, right = (
        (random.standard_normal(shape) * 2.0 ** random.integers(-70, 60, shape)).astype(np.float32)
        for shape in ((rows, rank), (rank, cols))
    )
    found = exact_product(left.T.copy().T, right)  # any order in memory
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "core", None)
        assert same(found, exact_product(left, right))
