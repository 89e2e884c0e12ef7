"""Fixed-rate quantization in groups: codes within their bits, scales as the format has them, odd sizes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.networks import relative

from waterfill import Importance, Quantize
from waterfill.errors import BadRecipe
from waterfill.part import decode


@given(
    st.integers(2, 8),
    st.one_of(st.none(), st.integers(1, 40)),
    st.booleans(),
    st.tuples(st.integers(1, 9), st.integers(1, 33)),
    st.integers(0, 1 << 20),
)
def test_codes_keep_to_their_bits(bits, group, symmetric, shape, seed):
    target = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + (seed % 3) / 2
    part = Quantize(bits=bits, group=group, symmetric=symmetric).fit(target, Importance(), 1.0)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    width = min(group or shape[1], shape[1])
    assert part.group == width and part.scales.shape == (shape[0], -(-shape[1] // width))
    assert low <= int(part.codes.min()) and int(part.codes.max()) <= high
    assert part.scales.dtype == torch.float16
    if symmetric:
        assert part.zeros is None
    else:
        assert low <= int(part.zeros.min()) and int(part.zeros.max()) <= high
    again = decode(part.encode(), part.shape)
    assert again == part and torch.equal(again.dense(), part.dense())


@pytest.mark.parametrize("symmetric", [True, False])
def test_restored_values_are_code_times_scale(symmetric):
    target = torch.randn(6, 50) + 1
    part = Quantize(bits=4, group=16, symmetric=symmetric).fit(target, Importance(), 1.0)
    for row in range(6):
        for col in range(50):
            zero = 0 if symmetric else int(part.zeros[row, col // 16])
            wanted = torch.tensor(int(part.codes[row, col]) - zero).float() * part.scales[row, col // 16].float()
            assert part.dense()[row, col] == wanted


def test_errors_stay_within_half_a_step_but_for_what_is_clipped():
    target = torch.rand(8, 64) * 2 - 1
    part = Quantize(bits=8, group=32).fit(target, Importance(), 1.0)
    step = part.scales.float().abs().repeat_interleave(32, dim=1)
    inside = target.abs() < 0.95 * target.abs().reshape(8, 2, 32).amax(2).repeat_interleave(32, dim=1) * 0.6
    assert bool(((target - part.dense()).abs() <= 0.5001 * step)[inside].all())


def test_smaller_groups_and_more_bits_are_closer():
    target = torch.randn(32, 128) * torch.rand(32, 128)

    def error(**arguments: object) -> float:
        return relative(target, Quantize(**arguments).fit(target, Importance(), 1.0).dense())

    assert error(bits=4, group=16) < error(bits=4, group=64) < error(bits=4)
    assert error(bits=8, group=64) < error(bits=5, group=64) < error(bits=3, group=64) < error(bits=2, group=64)


def test_a_zero_point_helps_where_values_have_one_sign():
    target = torch.rand(16, 64)
    symmetric, asymmetric = (
        relative(target, Quantize(bits=4, group=64, symmetric=s).fit(target, Importance(), 1.0).dense())
        for s in (True, False)
    )
    assert asymmetric < 0.7 * symmetric


@pytest.mark.parametrize("value", [0.7, -0.7, 100.0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_constant_groups_are_kept(value, symmetric):
    target = torch.full((3, 20), value)
    part = Quantize(bits=3, group=7, symmetric=symmetric).fit(target, Importance(), 1.0)
    assert relative(target, part.dense()) < 1e-3


def test_the_diagonal_decides_what_is_clipped():
    target = torch.randn(4, 64)
    target[:, 0] = 8
    weight = torch.ones(64)
    weight[0] = 1e-6
    kept, clipped = (
        Quantize(bits=3).fit(target, Importance(diagonal=d), 1.0).dense()[0, 0] for d in (1 / weight, weight)
    )
    assert kept == pytest.approx(8, rel=0.02) and clipped < 6


@pytest.mark.parametrize(
    "arguments",
    [{"bits": 1}, {"bits": 9}, {"bits": 3.5}, {"bits": 4, "group": 0}, {"group": 64}, {"symmetric": False}],
)
def test_arguments_without_meaning(arguments):
    with pytest.raises(BadRecipe, match="Quantize"):
        Quantize(**arguments)


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_follows_compensates_for_errors(symmetric):
    random = torch.Generator().manual_seed(4)
    target = torch.randn(24, 96, generator=random)
    x = torch.randn(400, 96, generator=random) @ torch.randn(96, 96, generator=random).tril()
    measured, alone = Importance(gram=x.T @ x / 400, damping=1e-2), Importance(diagonal=x.square().mean(0))
    spec = Quantize(bits=4, group=32, symmetric=symmetric)
    lost = [measured.distortion(target - spec.fit(target, one, 1.0).dense()) for one in (measured, alone)]
    assert lost[0] < 0.6 * lost[1]


def test_without_inputs_no_group_loses_more_than_by_the_rule_of_llama_cpp():
    target = torch.randn(16, 256, generator=torch.Generator().manual_seed(5)) ** 3  # tails, which clipping would cut
    part = Quantize(bits=4, group=32).fit(target, Importance(), 1.0)
    blocks = target.view(16, 8, 32)
    largest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
    scale = (largest / -8).half().float()
    rule = (blocks / scale).round().clamp(-8, 7) * scale
    own, other = ((blocks - made.view(16, 8, 32)).square().sum(2) for made in (part.dense(), rule))
    assert bool((own <= (1 + 1e-6) * other).all()) and own.sum() < 0.97 * other.sum()
    reached = part.dense().view(16, 8, 32).gather(2, blocks.abs().argmax(2, keepdim=True))
    assert bool(((reached / largest) > 0.8).all())  # the largest weight of no group is cut off
