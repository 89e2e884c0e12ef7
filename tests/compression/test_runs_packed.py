"""A budget for a network that is to run packed is one of memory too."""

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


INPUTS = list(torch.randn(64, 8, 6, 6, generator=torch.Generator().manual_seed(1)).split(16))


def rows_of(made: waterfill.CompressedModel) -> list[dict[str, Any]]:
    return table(waterfill.pack(made, Net()))


def held_of(made: waterfill.CompressedModel, allowed: int) -> int:
    """Bytes of the packed layers, which are within what is allowed and hold no code that has to be corrected."""
    rows = rows_of(made)
    held = sum(row["bytes"] for row in rows)
    assert all(row["runs"] == "packed" and row["form"] in WIDTHS for row in rows)
    assert made.size <= allowed and held <= allowed and made.notes["budget"].startswith(f"{held} bytes in memory")
    return held


def test_every_layer_runs_packed_in_no_more_memory_than_the_budget_says() -> None:
    net = trained()
    count = sum(value.numel() for value in net.parameters())
    files, held = [], []
    for bits in (3.5, 5):
        allowed = int(bits * count / 8)
        made = waterfill.compress(net, bits=bits, options=PACKED)
        files, held = [*files, made.size], [*held, held_of(made, allowed)]
        assert held[-1] > 0.85 * allowed
    assert held[0] < held[1] and files[0] < files[1]  # fewer bits in the file are fewer in memory


@pytest.mark.parametrize(("bits", "batches"), [(2, None), (3, None), (3, INPUTS)])
def test_no_more_is_lost_than_by_plain_rounding_to_as_many_bytes(bits: int, batches: list[Tensor] | None) -> None:
    net = trained()
    plain = waterfill.compress(net, spec=f"Quantize(bits={bits})")
    allowed = sum(row["bytes"] for row in rows_of(plain)) + 1000  # biases and names have a place in a budget too
    made = waterfill.compress(net, batches, size=allowed, options=dataclasses.replace(PACKED, steps=Steps(stages=2)))
    held_of(made, allowed)
    if batches is None:
        for name in ("up.weight", "head.weight"):  # of kernels smooth errors count, and not all squared ones alike
            assert (made.entries[name].error or 1) <= (plain.entries[name].error or 0)
        return
    own, other = (
        waterfill.evaluate(one.install(Net()).eval(), batches, reference=net).divergence for one in (made, plain)
    )
    assert own is not None and other is not None and own < 0.5 * other


def test_a_budget_below_two_bits_of_memory_is_refused_with_the_least() -> None:
    with pytest.raises(BudgetError, match="the smallest that this recipe can make has") as refused:
        waterfill.compress(trained(), bits=1, options=PACKED)
    least = int(str(refused.value).partition("can make has ")[2].partition(";")[0])
    assert 2 * 30_720 / 8 < least < 3 * 30_720 / 8


def test_files_keep_the_same_budget(tmp_path: Path) -> None:
    net = trained()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    options = dataclasses.replace(PACKED, force=True)
    summary = waterfill.compress_file(tmp_path / "net.safetensors", tmp_path / "net.wf", bits=4, options=options)
    read = waterfill.load(tmp_path / "net.wf")
    assert summary.memory == held_of(read, int(4 * summary.weights / 8)) and summary.size == read.size
    assert read.notes["recipe"] == "Quantize(packed=True)"


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
