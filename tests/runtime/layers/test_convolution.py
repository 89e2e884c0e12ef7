"""Convolutions that run packed: those of the restored weights, for every geometry and every form of the weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.packed import close, pair
from torch import nn

from waterfill.errors import BadInput
from waterfill.runtime.blocked import product

RECIPES = ["Quantize()", "Codebook(levels=6)", "Prune(keep=0.1)", "LowRank(rank=2)", "Quantize() + Prune(keep=0.02)"]
RECIPES += ["Prune(keep=0.3, pattern='columns')", "Codebook(values='ternary') + LowRank(rank=2)"]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@st.composite
def layers(draw: st.DrawFn, kinds: tuple[type[nn.Module], ...]) -> tuple[nn.Module, torch.Tensor]:
    """A convolution and inputs that it takes."""
    dims, turned = draw(st.integers(1, 3)), kinds is TRANSPOSED
    groups = draw(st.sampled_from([1, 1, 2]))
    sizes = [draw(st.integers(1, 3)) for _ in range(dims)]
    stride = draw(st.integers(1, 2))
    extra = {"output_padding": draw(st.integers(0, stride - 1))} if turned else {}
    if not turned:
        extra["padding_mode"] = draw(st.sampled_from(["zeros", "zeros", "reflect", "circular"]))
    torch.manual_seed(draw(st.integers(0, 1 << 20)))
    layer = kinds[dims - 1](
        groups * (80 if dims == 1 else 40),
        groups * draw(st.integers(24, 40)),
        sizes,
        stride,
        draw(st.integers(0, 1)),
        groups=groups,
        bias=draw(st.booleans()),
        dilation=draw(st.integers(1, 2)),
        **extra,
    )
    batch = [draw(st.integers(1, 2))] if draw(st.booleans()) else []
    return layer, torch.randn(*batch, layer.in_channels, *[draw(st.integers(5, 8)) for _ in range(dims)])


@pytest.mark.parametrize("kinds", [CONVOLUTIONS, TRANSPOSED])
@given(data=st.data())
@settings(max_examples=12, deadline=None)
@torch.no_grad()
def test_every_geometry(kinds: tuple[type[nn.Module], ...], data: st.DataObject) -> None:
    layer, x = data.draw(layers(kinds))
    packed, dense = pair(layer, data.draw(st.sampled_from(RECIPES)))
    assert close(packed(x), dense(x.double()), 1e-4)
    assert torch.equal(packed.weight, dense.weight.float())


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("groups", [1, 3])
@torch.no_grad()
def test_a_block_of_channels_at_a_time(recipe: str, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    seen = []
    monkeypatch.setattr("waterfill.runtime.layers.geometry.ENTRIES", 4000)
    for layer in (nn.Conv2d(48, 60, 3, padding=1, groups=groups), nn.ConvTranspose2d(60, 48, 3, groups=groups)):
        packed, dense = pair(layer, recipe)
        own = packed.term.block
        monkeypatch.setattr(packed.term, "block", lambda a, b, own=own: seen.append(b - a) or own(a, b), raising=False)
        x = torch.randn(2, layer.in_channels, 6, 6)
        assert close(packed(x), dense(x.double()), 1e-4)
    assert not seen or max(seen) * 16 * 9 <= 4000


@torch.no_grad()
def test_thin_factors_are_two_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, dense = pair(nn.Conv2d(64, 64, 3, padding=1, stride=2), "LowRank(rank=4)")
    monkeypatch.setattr(packed.term, "block", lambda *_: pytest.fail("restored whole"), raising=False)
    x = torch.randn(2, 64, 9, 9)
    assert close(packed(x), dense(x.double()), 1e-4)


@torch.no_grad()
def test_channels_that_are_gone_are_not_read() -> None:
    layer = nn.Conv2d(32, 48, 3)
    with torch.no_grad():
        layer.weight[:, ::2] = 0
    packed, dense = pair(layer, "Prune(keep=0.4, pattern='columns')")
    assert 0 < len(packed.channels) <= 16
    x = torch.randn(2, 32, 6, 6)
    wanted = dense(x.double())
    x[:, ::2] = torch.nan
    assert close(packed(x), wanted, 1e-4)


@torch.no_grad()
def test_few_positions_multiply_from_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, dense = pair(nn.Conv2d(96, 50, 1), "Quantize()")
    x, many = torch.randn(2, 96, 1, 2), torch.randn(2, 96, 5, 5)
    assert close(packed(many), dense(many.double()), 1e-5)
    monkeypatch.setattr(product, "product", lambda *_: pytest.fail("restored"))
    monkeypatch.setattr(packed.term, "block", lambda *_: pytest.fail("restored"), raising=False)
    assert close(packed(x), dense(x.double()), 1e-3)


def test_what_does_not_fit_is_refused() -> None:
    packed, _ = pair(nn.Conv2d(96, 50, 3), "Quantize()")
    for shape in ((2, 95, 5, 5), (5, 5)):
        with pytest.raises(BadInput, match="96 channels"):
            packed(torch.zeros(shape))
    with pytest.raises(BadInput, match="no gradients"):
        packed(torch.zeros(2, 96, 5, 5, requires_grad=True))
