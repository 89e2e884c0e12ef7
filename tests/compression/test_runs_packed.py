"""A budget for a network that is to run packed is one of memory too."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import waterfill
from waterfill import Importance, Options
from waterfill.compression.allocation.to_size.knapsack import Option, cheapest
from waterfill.compression.options import Steps
from waterfill.errors import BadRecipe, BudgetError
from waterfill.runtime import table

PACKED = Options(runs="packed", progress=False, threads=1)
WIDTHS = ("2-bit codes", "3-bit codes", "4-bit codes", "5-bit codes", "6-bit codes", "8-bit codes")


class Net(nn.Module):
    """A convolution and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 128, 3)
        self.up, self.head = nn.Linear(128, 128), nn.Linear(128, 40)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.up(self.conv(x).mean((2, 3)).relu()).relu())
        return made


def trained() -> nn.Module:
    """Weights with tails and rows of different scales, as training leaves them."""
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        for value in net.parameters():
            value.mul_(torch.exp(0.6 * torch.randn_like(value)))
            value.mul_(torch.exp(0.5 * torch.randn(len(value), *[1] * (value.ndim - 1))))
    return net


def rows_of(made: waterfill.CompressedModel, net: nn.Module | None = None) -> list[dict[str, Any]]:
    return table(waterfill.pack(made, Net() if net is None else copy.deepcopy(net)))


def held_of(made: waterfill.CompressedModel, allowed: int, net: nn.Module | None = None) -> int:
    """Bytes of the packed layers, which are within what is allowed and hold no code that has to be corrected."""
    rows = rows_of(made, net)
    held = sum(row["bytes"] for row in rows)
    assert all(row["runs"] == "packed" and row["form"] in WIDTHS for row in rows)
    assert made.size <= allowed and held <= allowed and made.notes["budget"].startswith(f"{held} bytes in memory")
    return held


def test_every_layer_runs_packed_in_no_more_memory_than_the_budget_says(tmp_path: Path) -> None:
    net = trained()
    count = sum(value.numel() for value in net.parameters())
    small = waterfill.compress(net, bits=3.5, options=PACKED)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    summary = waterfill.compress_file(tmp_path / "net.safetensors", tmp_path / "net.wf", bits=5, options=PACKED)
    large = waterfill.load(tmp_path / "net.wf")
    held = [held_of(made, int(bits * count / 8)) for made, bits in ((small, 3.5), (large, 5))]
    assert held[0] > 0.85 * 3.5 * count / 8 and held[1] > 0.85 * 5 * count / 8
    assert held[0] < held[1] and small.size < large.size  # fewer bits in the file are fewer in memory
    assert summary.memory == held[1] and large.notes["recipe"] == "Quantize(packed=True)"


@pytest.mark.parametrize("bits", [2, 3])
def test_no_more_is_lost_than_by_plain_rounding_to_as_many_bytes(bits: int) -> None:
    plain, allowed = plainly_rounded(trained(), bits)
    made = waterfill.compress(trained(), size=allowed, options=PACKED)
    held_of(made, allowed)
    for name in ("up.weight", "head.weight"):  # of kernels smooth errors count, and not all squared ones alike
        assert (made.entries[name].error or 1) <= 1.01 * (plain.entries[name].error or 0)


def plainly_rounded(net: nn.Module, bits: int) -> tuple[waterfill.CompressedModel, int]:
    """The network rounded to so many bits, and the bytes that its layers hold; biases and names have a place too."""
    plain = waterfill.compress(net, spec=f"Quantize(bits={bits})")
    return plain, 1000 + sum(row["bytes"] for row in rows_of(plain, net))


def test_with_inputs_far_less_is_lost() -> None:
    net = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 20)).eval()
    batches = [torch.randn(64, 128) @ torch.randn(128, 128).tril() / 12 for _ in range(4)]
    plain, allowed = plainly_rounded(net, 3)
    steps = Steps(stages=2, repair=False)
    made = waterfill.compress(net, batches, size=allowed, options=dataclasses.replace(PACKED, steps=steps))
    held_of(made, allowed, net)
    own, other = (
        waterfill.evaluate(one.install(copy.deepcopy(net)), batches, reference=net).divergence for one in (made, plain)
    )
    assert own is not None and other is not None and own < 0.5 * other


def test_a_budget_below_two_bits_of_memory_is_refused_with_the_least() -> None:
    with pytest.raises(BudgetError, match="the smallest that this recipe can make has") as refused:
        waterfill.compress(trained(), bits=1, options=PACKED)
    least = int(str(refused.value).partition("can make has ")[2].partition(";")[0])
    assert 2 * 30_720 / 8 < least < 3 * 30_720 / 8


def test_recipes_keep_what_has_no_codes_and_patterns() -> None:
    recipes = {"head": "Codebook(levels=8)", "*": "Quantize(states=8)"}
    made = waterfill.compress(trained(), spec=recipes, ignore=["conv"], price=1e-5, options=PACKED)
    assert made.notes["recipe"] == "conv: lossless; head: Codebook(levels=8); *: Quantize(packed=True)"
    rows = rows_of(made)
    forms = {row["name"]: row["form"] for row in rows}
    assert forms["up"] in WIDTHS and "values" in forms["head"] and forms["conv"] == "restored weights"
    assert waterfill.parse("Prune(values=Quantize(packed=True))").fit(torch.ones(4, 4), Importance(), 1.0) is not None


def test_what_has_no_meaning_is_refused() -> None:
    for wrong in (lambda: Options(runs="fast"), lambda: waterfill.Quantize(packed=True, states=8)):
        with pytest.raises(BadRecipe):
            wrong()
    with pytest.raises(BadRecipe, match="runs='packed'"):
        waterfill.compress(trained(), lossless=True, options=PACKED)


def test_the_cheapest_choice_is_that_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 4):
        sizes, losses = (torch.rand(count, 3, generator=generator).tolist() for _ in range(2))
        options = [
            [Option(1.0, 10 * b, c) for b, c in zip(*each, strict=True)] for each in zip(sizes, losses, strict=True)
        ]
        every = torch.cartesian_prod(*[torch.arange(3)] * count).reshape(-1, count).tolist()
        for room in (0.0, 2.0 * count, 5.0 * count, 10.0 * count):
            fitting = [c for c in every if sum(o[k].bits for o, k in zip(options, c, strict=True)) <= 0.99 * room]
            found = cheapest(options, room)
            if found is None:
                assert not fitting
                continue
            assert sum(own[k].bits for own, k in zip(options, found, strict=True)) <= room
            least = min((sum(o[k].loss for o, k in zip(options, c, strict=True)) for c in fitting), default=9e9)
            assert sum(own[k].loss for own, k in zip(options, found, strict=True)) <= least
