"""Every size from the smallest file on is met, and nearly used; below it the error names that file's bytes."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import waterfill
from waterfill import CompressedModel, Options, Steps
from waterfill.errors import BudgetError

Compressor = Callable[..., CompressedModel]


def drawn(*shapes: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    """Random weights of these shapes, each with another spread, under names such as networks have."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layers.{i}.{'weight' if len(shape) > 1 else 'bias'}": torch.randn(shape, generator=generator) / (3 + i)
        for i, shape in enumerate(shapes)
    }


NETWORKS = {
    "tiny": drawn((16, 16), (16,), (4, 16), (4,)),
    "deep": drawn(*[(40, 40), (40,)] * 8, (80, 80), (80,), seed=1),
    "kernels": drawn((8, 3, 3, 3), (8,), (8, 8, 3, 3), (8,), (10, 8), (10,), seed=2),
}
CASES = [
    ("tiny", "Quantize()"),
    pytest.param("kernels", "Prune()", marks=pytest.mark.slow),
    *(pytest.param(name, "Quantize()", marks=pytest.mark.slow) for name in ("deep", "kernels")),
    pytest.param("tiny", "Codebook()", marks=pytest.mark.slow),
    *(
        pytest.param(name, recipe, marks=pytest.mark.slow)
        for name in ("tiny", "kernels")
        for recipe in ("LowRank()", "Quantize(states=8)", "Quantize() | LowRank()", "Quantize() + Prune()")
    ),
]
STEPWISE = [
    ("tiny", "Dense()"),
    pytest.param("kernels", "Quantize(bits=3)", marks=pytest.mark.slow),
    pytest.param("kernels", "Codebook(levels=4)", marks=pytest.mark.slow),
    pytest.param("deep", "Sampled()", marks=pytest.mark.slow),
]


def smallest(compress: Compressor) -> int:
    """The bytes that the error of a budget far too small names."""
    with pytest.raises(BudgetError, match=r"the smallest that this recipe can make has \d+") as caught:
        compress(size=1)
    return int(re.findall(r"has (\d+)", str(caught.value))[0])


def in_memory(tensors: Mapping[str, Tensor], recipe: str) -> Compressor:
    return lambda **budget: waterfill.compress(tensors, spec=recipe, **budget)


def refused_below(compress: Compressor, least: int) -> None:
    with pytest.raises(BudgetError, match=rf"of {least - 1} bytes .* has {least};"):
        compress(size=least - 1)


@pytest.mark.parametrize("network", ["tiny", "kernels"])
def test_no_price_gives_a_file_below_the_smallest(network) -> None:
    compress = in_memory(NETWORKS[network], "Quantize()")
    least = smallest(compress)
    assert all(compress(price=2.0**k).size >= least for k in range(-10, 4))


@pytest.mark.parametrize(("network", "recipe"), CASES)
def test_every_size_from_the_smallest_file_on_is_met_and_used(network, recipe, tmp_path) -> None:
    compress = in_memory(NETWORKS[network], recipe)
    least = smallest(compress)
    refused_below(compress, least)
    entries = sum(t.numel() for t in NETWORKS[network].values())
    for size in (least, least + 9, int(1.4 * least), 2 * least + 1, entries):
        if size >= least:
            made = compress(size=size)
            assert made.save(tmp_path / "m.wf", force=True) == made.size <= size
            assert size <= 2 * least or made.size >= 0.97 * size
            assert size > least or made.size == least


@pytest.mark.parametrize(("network", "recipe"), STEPWISE)
def test_recipes_that_cannot_take_every_size_meet_it_too(network, recipe) -> None:
    compress = in_memory(NETWORKS[network], recipe)
    least = smallest(compress)
    refused_below(compress, least)
    sizes = [least, int(1.1 * least), int(1.5 * least), 4 * least]
    found = [compress(size=size).size for size in sizes]
    assert all(size <= most for size, most in zip(found, sizes, strict=True))
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("network", "price"), [("kernels", 1e-2), *(pytest.param("deep", p, marks=pytest.mark.slow) for p in (1e-2, 1.0))]
)
def test_what_a_price_gives_a_size_gives_too(network, price) -> None:
    compress = in_memory(NETWORKS[network], "Quantize()")
    least, size = smallest(compress), compress(price=price).size
    assert least <= size
    assert compress(size=size).size <= size
    assert 0.95 * 1.2 * size <= compress(size=int(1.2 * size)).size <= 1.2 * size


def test_a_file_to_file_compression_is_refused_with_the_same_bytes_and_so_is_its_plan(tmp_path) -> None:
    save_file(NETWORKS["kernels"], tmp_path / "m.safetensors")

    def to_file(**budget: float) -> CompressedModel:
        options = Options(force=True, threads=1)
        summary = waterfill.compress_file(tmp_path / "m.safetensors", tmp_path / "m.wf", options=options, **budget)
        made = waterfill.load(tmp_path / "m.wf")
        assert made.size == summary.size == (tmp_path / "m.wf").stat().st_size
        return made

    def planned(**budget: float) -> CompressedModel:
        return waterfill.plan_file(tmp_path / "m.safetensors", **budget)

    least = smallest(to_file)
    assert least == smallest(in_memory(NETWORKS["kernels"], "Quantize()")) == smallest(planned)
    refused_below(to_file, least)
    assert to_file(size=least).size == least
    assert not list(Path(tmp_path).glob("*.work"))
    assert to_file(size=3 * least).size >= 0.97 * 3 * least


def with_data(recipe: str | None) -> Compressor:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5)).eval()
    batches = list(torch.randn(48, 24).split(16))
    given = {} if recipe is None else {"spec": recipe}
    options = Options(steps=Steps(stages=1, repair=False))
    return lambda **budget: waterfill.compress(model, batches, **given, options=options, **budget)


@pytest.mark.parametrize("recipe", [pytest.param(None, marks=pytest.mark.slow), "Quantize()"])
def test_with_data_every_size_from_the_smallest_file_on_is_met(recipe) -> None:
    compress = with_data(recipe)
    least = smallest(compress)
    refused_below(compress, least)
    for size in (least, int(1.3 * least), 2 * least + 1):
        made = compress(size=size)
        assert made.size <= size
        assert size <= 2 * least or made.size >= 0.95 * size


def test_a_budget_that_cannot_be_used_gives_the_best_file_and_a_remark(tmp_path) -> None:
    tensors = NETWORKS["kernels"]
    made = waterfill.compress(tensors, bits=40)
    assert made.size < 0.97 * 5 * sum(t.numel() for t in tensors.values())
    assert "could not use them all" in made.notes["budget"]
    made.save(tmp_path / "m.wf")
    loaded = waterfill.load(tmp_path / "m.wf")
    assert loaded.notes["budget"] == made.notes["budget"] and loaded.size == made.size
    assert all(float((t - loaded.state_dict()[n]).norm() / t.norm()) < 1e-6 for n, t in tensors.items())
    save_file(tensors, tmp_path / "m.safetensors")
    summary = waterfill.compress_file(tmp_path / "m.safetensors", tmp_path / "f.wf", bits=40)
    assert waterfill.load(tmp_path / "f.wf").notes["budget"] == made.notes["budget"] and summary.size <= 40 / 8 * 2000
    assert "could not use" in with_data("Quantize()")(bits=40).notes["budget"]
    assert "budget" not in waterfill.compress(tensors, bits=6).notes


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the price goes below what numbers hold
def test_more_bits_than_numbers_have_are_a_budget_like_others() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).eval()
    for batches in (None, [torch.randn(16, 16) for _ in range(4)]):
        assert waterfill.compress(model, batches, bits=1000).bits < 64
