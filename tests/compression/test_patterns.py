"""Tensors that are ignored and recipes by patterns of names: in models, in files, with inputs and without."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.support.small_networks import images, lively
from torch import Tensor, nn

import waterfill
from waterfill import Options, Steps, learn
from waterfill.compression.steps.repair import repair
from waterfill.errors import BadRecipe, BudgetError, PlanMismatch

RECIPES = {"re:.*mlp": "Prune(keep=0.25) | LowRank(rank=2)", "*": "Quantize(bits=4)"}


def language_model() -> dict[str, Tensor]:
    """The tensors of two small blocks, a table and a head that is tied to it, in bfloat16."""
    random = torch.Generator().manual_seed(0)
    state = {"embed.weight": torch.randn(96, 32, generator=random).bfloat16()}
    for i in range(2):
        for part in ("attn", "mlp"):
            state[f"layers.{i}.{part}.weight"] = torch.randn(32, 32, generator=random).bfloat16()
    return state | {"head.weight": state["embed.weight"]}


def parts(rows: list[dict[str, object]]) -> dict[str, str]:
    return {row["name"]: f"{row['part']} {row['reason']}".strip() for row in rows}


def saved(folder: Path) -> Path:
    path = folder / "net.safetensors"
    save_file({name: value.clone() for name, value in language_model().items()}, path)
    return path


def test_models_and_files_take_the_same_recipes_and_keep_what_is_ignored(tmp_path: Path) -> None:
    given = {"spec": RECIPES, "ignore": ["layers.0.mlp", "re:(embed|head)"], "price": 1e-3}
    model = waterfill.compress(language_model(), **given)
    target = tmp_path / "net.wf"
    summary = waterfill.compress_file(saved(tmp_path), target, **given)
    plan = waterfill.plan_file(saved(tmp_path), **given)
    found = parts(model.table())
    assert found == parts(summary.rows) and [row["reason"] for row in plan.rows] == [
        row["reason"] for row in summary.rows
    ]
    assert {name for name, said in found.items() if "ignored: kept bit for bit" in said} == {
        "embed.weight",
        "layers.0.mlp.weight",
    }
    assert found["layers.0.attn.weight"].startswith("quantized") and "0.25 kept" in found["layers.1.mlp.weight"]
    loaded, original = waterfill.load(target), language_model()
    assert loaded.notes["recipe"] == model.notes["recipe"]
    for name in ("embed.weight", "head.weight", "layers.0.mlp.weight"):
        assert torch.equal(loaded.state_dict()[name], original[name])
    again = waterfill.compress(language_model(), spec=loaded.notes["recipe"], price=1e-3)
    assert again.size == model.size


def test_the_budget_is_that_of_the_whole_file_and_an_impossible_one_says_what_is_kept() -> None:
    free = waterfill.compress(language_model(), bits=4)
    kept = waterfill.compress(language_model(), size=free.size + 2000, ignore=["layers.0.attn"])
    assert kept.size <= free.size + 2000
    assert parts(kept.table())["layers.0.attn.weight"].endswith("ignored: kept bit for bit")
    with pytest.raises(BudgetError, match=r"'layers.0.attn.weight' \(\d+ bytes; ignored: kept bit for bit\)"):
        waterfill.compress(language_model(), size=1500, ignore=["layers.0.attn"])


def test_an_ignored_tensor_may_hold_what_no_recipe_takes(tmp_path: Path) -> None:
    state = {"a": torch.full((20, 20), torch.nan), "b": torch.randn(20, 20)}
    assert torch.equal(
        waterfill.compress(state, ignore=["a"], price=1e-3).state_dict()["a"].isnan(), state["a"].isnan()
    )


def test_resuming_knows_patterns(tmp_path: Path) -> None:
    source, target, work = saved(tmp_path), tmp_path / "net.wf", tmp_path / "work"

    def stop(progress: waterfill.Progress) -> None:
        if progress.stage == "fitting" and progress.done >= 2:
            raise KeyboardInterrupt

    given = {"price": 1e-3, "ignore": ["layers.1.*"]}
    with pytest.raises(KeyboardInterrupt):
        waterfill.compress_file(source, target, **given, options=Options(work=work, progress=stop, threads=1))
    for other in ({"price": 1e-3}, {"price": 1e-3, "ignore": ["layers.0.*"]}):
        with pytest.raises(PlanMismatch, match="recipe"):
            waterfill.compress_file(source, target, **other, options=Options(work=work, progress=False))
    resumed = waterfill.compress_file(source, target, **given, options=Options(work=work, progress=False))
    assert resumed.size == waterfill.compress_file(source, tmp_path / "other.wf", **given).size


def convolutions() -> nn.Module:
    pairs = ((nn.Conv2d(a, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()) for a in (3, 8, 8))
    return nn.Sequential(*(layer for pair in pairs for layer in pair), nn.Flatten(), nn.Linear(32, 10))


def test_with_inputs_norms_are_not_folded_into_what_is_ignored() -> None:
    x = images(32)
    net = lively(convolutions, x)
    options = Options(steps=Steps(stages=0, repair=False), progress=False)
    made = waterfill.compress(
        net, list(x.split(16)), spec="Quantize()", ignore=["0", "4.bias"], price=1e-6, options=options
    )
    before, after = net.state_dict(), made.state_dict()
    assert torch.equal(before["0.weight"], after["0.weight"]) and torch.equal(before["4.bias"], after["4.bias"])
    folded = [name for name in ("1", "4", "7") if bool((after[f"{name}.running_mean"] == 0).all())]
    assert folded == ["7"]
    assert {row["name"]: row["reason"] for row in made.table()}["0.weight"] == "ignored: kept bit for bit"
    again = made.install(lively(convolutions, x))
    assert torch.nn.functional.cosine_similarity(again(x).ravel(), net(x).ravel(), dim=0) > 0.9


def test_repairs_leave_what_is_ignored() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 10)), torch.randn(256, 24) + 1
    coarse = {"spec": "Quantize(bits=2)"}
    free = repair(waterfill.compress(net, **coarse), net, x.split(64))
    assert set(free.changed) == {"0.bias", "2.bias"}
    kept = repair(waterfill.compress(net, **coarse, ignore=["2.bias"]), net, x.split(64))
    assert set(kept.changed) == {"0.bias"}


def test_the_default_with_inputs_is_the_automatic_choice_for_what_no_pattern_matches() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 10)), torch.randn(32, 24)
    options = Options(steps=Steps(stages=0, repair=False), progress=False)
    made = waterfill.compress(net, list(x.split(16)), spec={"2": "Codebook(levels=4)"}, bits=5, options=options)
    found = parts(made.table())
    assert "4 levels" in found["2.weight"] and "64 states" in found["0.weight"]
    assert made.notes["recipe"] == "2: Codebook(levels=4)"


def test_what_excludes_one_another_is_refused() -> None:
    with pytest.raises(BadRecipe, match="leave ignore= out"):
        waterfill.compress(language_model(), lossless=True, ignore=["embed"])
    with pytest.raises(BadRecipe, match="one tensor"):
        waterfill.compress(language_model(), ignore=["head"])
    with pytest.raises(BadRecipe, match="freeze"):
        learn.LC(nn.Linear(20, 20), {"weight": "lossless"})
