"""Dense: rounding, mantissa bits chosen by price, every number type to the bit, and how few bytes vectors take."""

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from waterfill.errors import BadRecipe, CorruptFile
from waterfill.importance import Importance
from waterfill.part import cost, decode
from waterfill.parts.dense import Dense, DensePart, rounded

TYPES = [
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2),
]
UNIFORM = Importance()


def octets(values: Tensor) -> bytes:
    return values.contiguous().view(torch.uint8).numpy().tobytes()


def again(part: DensePart) -> DensePart:
    """The part as it comes back from its bytes."""
    read = decode(part.encode(), part.shape)
    assert read == part
    assert read.dense().dtype == part.dense().dtype
    assert octets(read.dense()) == octets(part.dense())
    return read


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (1, 60), (37, 90)])
def test_lossless_gives_back_every_bit_of_every_type(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    size = torch.empty(0, dtype=dtype).element_size()
    noise = torch.randint(0, 2 if dtype == torch.bool else 256, (shape[0], shape[1] * size), dtype=torch.uint8)
    values = noise.view(dtype)
    part = Dense(format="lossless").fit(values, UNIFORM, 1.0)
    again(part)
    assert len(part.encode()) <= values.numel() * size + 8  # noise, so nothing can be gained


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lossless_keeps_what_is_not_a_number(dtype: torch.dtype) -> None:
    values = torch.randn(50, 40).to(dtype)
    values[3, :6] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-40]).to(dtype)
    width = torch.int32 if dtype == torch.float32 else torch.int16
    values[4, 0] = torch.tensor([-3], dtype=width).view(dtype)[0]  # a negative NaN with a payload
    again(Dense(format="lossless").fit(values, UNIFORM, 1.0))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_matrices_come_back(shape: tuple[int, int]) -> None:
    for dtype in (torch.float32, torch.int64):
        again(Dense(format="lossless").fit(torch.empty(shape, dtype=dtype), UNIFORM, 1.0))
    again(Dense().fit(torch.empty(shape), UNIFORM, 1.0))


@given(st.integers(0, 23), st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_rounding_is_to_the_nearest(mantissa: int, numbers: list[float]) -> None:
    values = torch.tensor([numbers], dtype=torch.float32)
    near = rounded(values, mantissa)
    assert torch.isfinite(near).all()
    assert not (near.view(torch.int32) & ((1 << (23 - mantissa)) - 1)).any()
    spacing = 2.0 ** (torch.frexp(values.double())[1].clamp_min(-125) - 1 - mantissa)
    largest = 2.0**127 * (2 - 2.0**-mantissa)
    inside = values.double().abs() <= largest
    assert ((near.double() - values.double()).abs() <= spacing / 2)[inside].all()
    assert torch.equal(near.abs()[~inside], torch.full_like(near, largest)[~inside])


def test_rounding_agrees_with_bfloat16_and_float16() -> None:
    values = torch.randn(100, 100) * torch.exp(3 * torch.randn(100, 1))
    assert torch.equal(Dense(format="bfloat16").fit(values, UNIFORM, 1.0).dense(), values.bfloat16().float())
    values[0, :3] = torch.tensor([1e9, 1e-7, -0.0])
    expected = values.clamp(-65504, 65504).half().float()
    assert torch.equal(Dense(format="float16").fit(values, UNIFORM, 1.0).dense(), expected)


def test_short_vectors_cost_a_few_bytes_more_than_their_mantissas() -> None:
    variances = torch.exp(torch.randn(1, 64))
    part = Dense(mantissa=6).fit(variances, UNIFORM, 1.0)
    assert len(part.encode()) <= 64 * (6 + 3) / 8 + 5
    assert len(Dense(mantissa=6).fit(-variances, UNIFORM, 1.0).encode()) <= 64 * (7 + 3) / 8 + 5
    assert len(Dense(mantissa=6).fit(torch.exp(torch.randn(1, 16)), UNIFORM, 1.0).encode()) <= 16 * (6 + 3) / 8 + 5


def test_constants_cost_a_few_bytes() -> None:
    for value, most in ((0.0, 4), (1.0, 4), (-1.5, 5), (0.1, 8)):
        part = Dense(format="lossless").fit(torch.full((100, 100), value), UNIFORM, 1.0)
        assert len(part.encode()) <= most
        again(part)
    again(Dense(format="lossless").fit(torch.full((3000, 3000), 7, dtype=torch.int64), UNIFORM, 1.0))


def test_trailing_zeros_of_a_mantissa_are_not_paid_for() -> None:
    values = torch.randn(200, 200)
    wide, narrow = (Dense(format="lossless").fit(v, UNIFORM, 1.0) for v in (values, values.bfloat16().float()))
    assert narrow.bits < wide.bits - 15.9 * values.numel()


def test_the_price_decides_the_mantissa() -> None:
    values = torch.randn(1, 500)
    importance = Importance(diagonal=1 / values[0].square())
    prices = [4.0**k for k in range(-20, 4, 3)]
    parts = [Dense().fit(values, importance, price) for price in prices]
    bits = [part.bits for part in parts]
    assert bits == sorted(bits, reverse=True)
    assert parts[-1].describe().startswith("constant")
    for price, part in zip(prices, parts, strict=True):
        fixed = [Dense(mantissa=m).fit(values, importance, price) for m in range(24)]
        best = min(cost(other, values, importance, price) for other in fixed)
        assert cost(part, values, importance, price) <= best * 1.001


def test_the_constant_is_the_weighted_mean() -> None:
    values = torch.tensor([[1.0, 2.0], [5.0, 6.0]])
    importance = Importance(rows=torch.tensor([3.0, 0.0]), diagonal=torch.tensor([1.0, 3.0]))
    part = Dense().fit(values, importance, 1e6)
    assert torch.equal(part.dense(), torch.full((2, 2), 1.75))


def test_values_that_are_not_finite_are_kept_exactly() -> None:
    values = torch.randn(4, 40)
    values[1, 2] = float("nan")
    assert octets(Dense(mantissa=2).fit(values, UNIFORM, 1.0).dense()) == octets(values)


def test_a_gram_matrix_counts_by_its_diagonal() -> None:
    inputs = torch.randn(300, 20)
    values = torch.randn(30, 20)
    importance = Importance(gram=inputs.T @ inputs / 300)
    coarse, fine = (Dense().fit(values, importance, price) for price in (1e-1, 1e-6))
    assert importance.distortion(values - fine.dense()) < importance.distortion(values - coarse.dense())
    assert coarse.bits < fine.bits


def test_kernel_positions_are_remembered() -> None:
    kernels = torch.randn(32, 16, 9) * torch.exp2(torch.randn(9)) * torch.exp2(torch.randn(16, 1))
    part = Dense(format="lossless").fit(kernels.reshape(32, 144), Importance(kernel=(3, 3)), 1.0)
    assert again(part).positions == 9


def test_specs_print_as_they_are_written() -> None:
    for spec in (Dense(), Dense(format="bfloat16"), Dense(mantissa=6), Dense(format="lossless")):
        assert eval(repr(spec), {"Dense": Dense}) == spec
    assert repr(Dense(mantissa=6)) == "Dense(mantissa=6)"


def test_arguments_that_mean_nothing_are_refused() -> None:
    for wrong in ({"format": "float12"}, {"mantissa": 24}, {"mantissa": -1}, {"format": "float32", "mantissa": 3}):
        with pytest.raises(BadRecipe):
            Dense(**wrong)


def test_damaged_parts_are_refused_or_are_other_parts() -> None:
    rng = np.random.default_rng(0)
    for values in (torch.randn(30, 30), torch.randn(1, 20), torch.rand(8, 8) > 0.5):
        part = Dense(format="lossless").fit(values, UNIFORM, 1.0)
        data = part.encode()
        for end in range(1, len(data)):
            with pytest.raises(CorruptFile):
                decode(data[:end], part.shape)
        for _ in range(200):
            flipped = bytearray(data)
            flipped[rng.integers(1, len(data))] ^= 1 << rng.integers(8)
            with contextlib.suppress(CorruptFile):
                assert decode(bytes(flipped), part.shape).dense().shape == values.shape
