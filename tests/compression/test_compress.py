"""compress(): every layer and number type, every budget, ties, progress; in files of the size that was asked for."""

import pytest
import torch
from tests.support.networks import mixed, relative, same, state
from torch import nn

import waterfill
from waterfill import Importance
from waterfill.errors import BadInput, BadRecipe, BudgetError


def count(tensors) -> int:
    return sum(t.numel() for t in tensors.values() if t.is_floating_point())


@pytest.fixture(scope="module")
def small() -> waterfill.CompressedModel:
    return waterfill.compress(mixed(), bits=4)


def test_every_layer_comes_back_close_in_its_own_shape_and_type(small):
    original, restored = mixed().state_dict(), small.state_dict()
    assert sorted(restored) == sorted(original)
    for name, tensor in original.items():
        assert restored[name].dtype == tensor.dtype and restored[name].shape == tensor.shape, name
        if not tensor.is_floating_point():
            assert torch.equal(restored[name], tensor), name
        elif tensor.numel() and float(tensor.norm()):
            assert relative(tensor, restored[name]) < 0.35, name


def test_the_table_says_what_became_of_each_tensor_and_why(small):
    rows = {row["name"]: row for row in small.table()}
    assert set(rows) == set(mixed().state_dict()) - {"head.weight"}
    reasons = {name: row["reason"] for name, row in rows.items()}
    assert reasons["linear.weight"] == reasons["experts"] == reasons["lstm.weight_hh_l0"] == ""
    assert reasons["linear.bias"] == reasons["norm.running_mean"] == "one-dimensional"
    assert reasons["scalar"] == "a buffer, no parameter: kept bit for bit"
    assert reasons["mask"] == reasons["table"] == "not floating point: kept bit for bit"
    assert reasons["empty"] == "empty"
    assert rows["experts"]["shape"] == [8, 32, 16] and rows["experts"]["dtype"] == "float32"
    assert sum(row["bytes"] for row in rows.values()) < small.size
    assert rows["linear.weight"]["bits"] == 8 * rows["linear.weight"]["bytes"] / 1200


def test_reasons_of_small_and_extreme_tensors():
    tensors = {"tiny": torch.randn(4, 4), "huge": 1e30 * torch.randn(20, 30), "weak": 1e-25 * torch.randn(20, 30)}
    reasons = {row["name"]: row["reason"] for row in waterfill.compress(tensors, price=1e-4).table()}
    assert reasons["tiny"] == "too small to gain"
    assert reasons["huge"] == reasons["weak"] == "values too small or too large to be squared"


def test_experts_are_a_matrix_each(small):
    assert len(small.entries["experts"].parts) == 8
    assert {part.shape for part in small.entries["experts"].parts} == {(32, 16)}


def test_tied_weights_are_stored_once_and_tied_again(small, tmp_path):
    assert small.aliases == {"head.weight": "embedding.weight"}
    restored = small.state_dict()
    assert restored["head.weight"].data_ptr() == restored["embedding.weight"].data_ptr()
    small.save(tmp_path / "m.wf")
    module = waterfill.load(tmp_path / "m.wf").install(mixed())
    assert module.head.weight is module.embedding.weight
    assert same(module.head.weight.detach(), restored["embedding.weight"])


@pytest.mark.parametrize("bits", [2, 3, 5.5, 8])
def test_bits_per_weight_are_those_of_the_file(bits, tmp_path):
    model = waterfill.compress(state(), bits=bits)
    size = model.save(tmp_path / "m.wf")
    assert size == (tmp_path / "m.wf").stat().st_size == model.size
    allowed = bits * count(state()) / 8
    assert 0.98 * allowed <= size <= allowed
    assert model.bits == pytest.approx(8 * size / count(state()))


@pytest.mark.parametrize("recipe", ["Quantize()", "Codebook()", "LowRank() | Quantize()", "Prune()"])
@pytest.mark.parametrize("size", [1500, 3000])
def test_size_in_bytes_for_every_kind(recipe, size, tmp_path):
    tensors = {name: t for name, t in state().items() if name.startswith("a")}
    found = waterfill.compress(tensors, spec=recipe, size=size).save(tmp_path / "m.wf")
    assert (0.95 if "Codebook" in recipe else 0.98) * size <= found <= size  # levels are added one by one


def test_a_sum_meets_its_budget(tmp_path):
    tensors = {name: t for name, t in state().items() if name.startswith("a")}
    found = waterfill.compress(tensors, spec="Quantize() + LowRank()", size=2500).save(tmp_path / "m.wf")
    assert 0.98 * 2500 <= found <= 2500


def test_ratio_counts_original_bytes():
    original = sum(t.numel() * t.element_size() for t in state().values())
    model = waterfill.compress(state(), ratio=10)
    assert 0.98 * original / 10 <= model.size <= original / 10
    assert model.notes["original"] == original


def test_a_dearer_price_buys_fewer_bytes_and_more_error():
    sizes, errors = [], []
    for price in (1e-5, 1e-4, 1e-3, 1e-2):
        model = waterfill.compress(state(), price=price)
        sizes.append(model.size)
        errors.append(relative(state()["a.weight"], model.state_dict()["a.weight"]))
    assert sizes == sorted(sizes, reverse=True) and errors == sorted(errors)


def test_without_a_budget_four_bits_or_the_rate_of_the_recipe():
    assert waterfill.compress(state()).bits == pytest.approx(4, rel=0.02)
    fixed = waterfill.compress(state(), spec="Quantize(bits=4, group=32)")
    assert fixed.entries["a.weight"].parts[0].describe() == "quantized, groups of 32"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_keep_their_type(dtype):
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state().items()}
    model = waterfill.compress(tensors, bits=5)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == tensors[name].dtype
        assert not tensor.is_floating_point() or relative(tensors[name], tensor) < 0.1


ODD_BITS = {
    torch.float32: torch.tensor([0x7FC00001, -0x003FFFFE, 0x7F800000, -0x80000000, 1, 0x3F800000], dtype=torch.int32),
    torch.float16: torch.tensor([0x7E01, -0x01FE, 0x7C00, -0x8000, 1, 0x3C00], dtype=torch.int16),
    torch.bfloat16: torch.tensor([0x7FC1, -0x003E, 0x7F80, -0x8000, 1, 0x3F80], dtype=torch.int16),
    torch.float64: torch.tensor([0x7FF8 << 48 | 1, -1, 0x7FF0 << 48, 1, 2, 3], dtype=torch.int64),
}


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool, torch.uint8, torch.int8),
        *(torch.int16, torch.int32, torch.int64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2),
    ],
    ids=str,
)
def test_lossless_is_identical_bit_for_bit(dtype, tmp_path):
    tensors = {
        "matrix": (30 * torch.randn(24, 50)).to(dtype),
        "kernel": torch.randn(8, 4, 3, 3).to(dtype),
        "vector": torch.randn(9).to(dtype),
        "scalar": torch.ones((), dtype=dtype),
        "empty": torch.zeros(3, 0, dtype=dtype),
    }
    if dtype in ODD_BITS:
        tensors["odd"] = ODD_BITS[dtype].repeat(20).view(dtype).reshape(10, 12)
    model = waterfill.compress(tensors, lossless=True)
    model.save(tmp_path / "m.wf")
    restored = waterfill.load(tmp_path / "m.wf").state_dict()
    assert sorted(restored) == sorted(tensors)
    assert all(same(restored[name], tensor) for name, tensor in tensors.items())
    assert all(row["error"] == 0 for row in model.table())


def test_lossless_of_a_whole_module(tmp_path):
    module = mixed()
    model = waterfill.compress(module, lossless=True)
    assert all(same(model.state_dict()[name], tensor) for name, tensor in module.state_dict().items())
    assert model.aliases == {"head.weight": "embedding.weight"}


def test_tensors_of_odd_strides_and_with_gradients():
    tensors = {
        "turned": torch.randn(30, 20).T,
        "expanded": torch.randn(1, 30).expand(20, 30),
        "one of many": torch.arange(1.0, 10.0)[::9],
        "learned": nn.Parameter(torch.randn(20, 30)),
    }
    kept = waterfill.compress(tensors, lossless=True).state_dict()
    assert all(torch.equal(kept[name], tensor.detach()) for name, tensor in tensors.items())
    close = waterfill.compress(tensors, price=1e-5).state_dict()
    assert all(relative(tensor.detach(), close[name]) < 0.05 for name, tensor in tensors.items())


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in ("once", "again"):
        waterfill.compress(state(), bits=3).save(tmp_path / name)
    assert (tmp_path / "once").read_bytes() == (tmp_path / "again").read_bytes()


def test_progress_ends_with_everything_done():
    told = []
    waterfill.compress(state(), bits=4, options=waterfill.Options(progress=told.append))
    last = told[-1]
    assert last.stage == "fitting"
    assert (last.done, last.entries_done) == (last.total, last.entries) == (6, sum(t.numel() for t in state().values()))
    assert {p.stage for p in told} <= {"measuring", "fitting"}
    for stage in {p.stage for p in told}:
        done = [p.entries_done for p in told if p.stage == stage]
        assert done == sorted(done)


def test_given_importance_moves_the_bits():
    cols = torch.ones(96)
    cols[:48] = 400.0
    even = waterfill.compress(state(), bits=4).state_dict()["a.weight"] - state()["a.weight"]
    model = waterfill.compress(state(), bits=4, importance={"a.weight": Importance(diagonal=cols)})
    uneven = model.state_dict()["a.weight"] - state()["a.weight"]
    assert uneven[:, :48].norm() / uneven[:, 48:].norm() < 0.2 < even[:, :48].norm() / even[:, 48:].norm()


@pytest.mark.parametrize("scale", [1e-13, pytest.param(1e13, marks=pytest.mark.slow)])
def test_the_scale_of_given_importance_does_not_matter_to_a_budget(scale):
    importance = {name: Importance().scaled(scale) for name in state() if name != "c.steps"}
    model = waterfill.compress(state(), bits=4, importance=importance)
    assert 0.98 * 4 <= model.bits <= 4


@pytest.mark.parametrize(
    ("importance", "told"),
    [
        ({"nobody": Importance()}, "'nobody', which is not a tensor"),
        ({"a.weight": Importance(diagonal=torch.ones(3))}, r"'a.weight': importance: diagonal has shape \[3\]"),
        ({"a.weight": Importance(gram=-torch.eye(96))}, "positive semi-definite"),
    ],
)
def test_importance_that_does_not_fit(importance, told):
    with pytest.raises(BadInput, match=told):
        waterfill.compress(state(), bits=4, importance=importance)


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"bits": 2, "size": 1000}, BadRecipe, "one budget at a time, not bits and size"),
        ({"bits": 2, "lossless": True}, BadRecipe, "lossless"),
        ({"bits": 0}, BudgetError, "bits=0: a budget is a positive number"),
        ({"size": -5}, BudgetError, "size=-5"),
        ({"ratio": float("inf")}, BudgetError, "ratio=inf"),
        ({"price": float("nan")}, BudgetError, "price=nan"),
        ({"size": 1}, BudgetError, "a file of 1 bytes is asked for, and the smallest that this recipe can make has"),
        ({"bits": 0.01}, BudgetError, "the smallest that this recipe"),
        ({"spec": "Quantize(bits=8)", "size": 3000}, BudgetError, "of 3000 bytes .* has 1[0-9]{4};"),
        ({"spec": "Nonsense()"}, BadRecipe, "Nonsense"),
    ],
)
def test_budgets_and_recipes_without_meaning(arguments, error, told):
    with pytest.raises(error, match=told):
        waterfill.compress(state(), **arguments)


def test_a_tighter_budget_says_how_much_is_needed():
    with pytest.raises(BudgetError, match=r"of 330 bytes is asked for, .* has \d+; allow more"):
        waterfill.compress(state(), size=330)
