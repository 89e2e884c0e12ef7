"""What is kept bit for bit though its numbers could be rounded."""

import pytest
import torch
from torch import nn

from waterfill.errors import BadInput
from waterfill.network.kept import is_progression, why_kept
from waterfill.network.tensors import constants_of

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2)
INFINITE = float("inf")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("turned", [False, True])
def test_values_that_are_no_numbers_are_counted_and_named(dtype, turned):
    tensor = torch.randn(20, 30)
    tensor[3, 4:6] = float("nan")
    tensor[0, 0] = INFINITE
    with pytest.raises(BadInput, match=r"'layer\.weight' holds 2 values that are NaN.*lossless"):
        why_kept("layer.weight", (tensor.T if turned else tensor).to(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_infinities_are_kept_even_where_errors_were_measured(dtype):
    mask = torch.full((9, 9), -INFINITE).triu(1).to(dtype)
    assert why_kept("mask", mask) == why_kept("mask", mask, measured=True) == "holds infinite values: kept bit for bit"
    assert why_kept("w", torch.randn(9, 9, dtype=torch.complex64) * INFINITE) != ""


def test_large_finite_values_pass_and_those_beyond_float32_are_kept():
    assert why_kept("sums overflow float32", torch.full((3, 3), 3e38)) == ""
    assert why_kept("sums overflow float16", torch.full((3, 3), 6e4, dtype=torch.float16)) == ""
    told = why_kept("w", torch.tensor([1.0, 1e300], dtype=torch.float64))
    assert told == "holds values beyond float32: kept bit for bit"


def test_masks_are_told_by_their_values():
    mask = (torch.rand(300, 300) < 0.5).float()
    assert why_kept("w", mask) == "zeros and ones: kept bit for bit"
    assert why_kept("w", mask, measured=True) == ""
    late = torch.zeros(1200, 1200)
    late[-1, -1] = 1  # beyond the first piece
    assert why_kept("w", late) != ""
    late[-1, -2] = 0.5
    for other in (torch.zeros(9, 9), torch.ones(9), late, 2 * mask):
        assert why_kept("w", other) == ""


@pytest.mark.parametrize("dtype", FLOATS[:4])
def test_progressions_are_computed_and_never_learned(dtype):
    frequencies = (1e4 ** (-torch.arange(0, 64, 2) / 64)).to(dtype)
    assert is_progression(frequencies) and why_kept("rotary.freqs", frequencies) != ""
    assert is_progression(torch.arange(9.0).to(dtype)) and is_progression(torch.linspace(-2, 1, 16).to(dtype))
    assert is_progression(-(2 ** -torch.arange(1.0, 9)).to(dtype))  # slopes by which attention falls with distance
    moved = frequencies.clone()
    moved[7] *= 1.2
    near_one = (1 + torch.linspace(-1e-3, 1e-3, 16)).to(dtype)
    for other in (moved, near_one, torch.ones(64), torch.randn(64).sort().values, torch.arange(3.0)):
        assert not is_progression(other.to(dtype)) or (dtype in (torch.float32, torch.float64) and other is near_one)
    assert why_kept("layers.0.rotary_emb.inv_freq", moved) != ""  # scaled frequencies, by their name
    assert why_kept("w", torch.arange(9)) == ""  # of a type that is kept anyway, and told so elsewhere


def test_what_a_module_says_is_no_parameter():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(8), nn.Linear(8, 8)
            self.frozen = nn.Module()  # as detectors have their norms
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.frozen.register_buffer(name, torch.rand(8))
            self.register_buffer("scale", torch.rand(8))
            self.register_buffer("cache", torch.rand(8), persistent=False)

        def get_extra_state(self) -> torch.Tensor:
            return torch.rand(3)

        def set_extra_state(self, state: torch.Tensor) -> None: ...

    assert constants_of(Net()) == {"scale", "_extra_state"}
    assert constants_of(nn.Linear(3, 3)) == set()
    assert why_kept("scale", torch.rand(8), constant=True) == "a buffer, no parameter: kept bit for bit"
    assert why_kept("scale", torch.rand(8), constant=True, measured=True) == ""
