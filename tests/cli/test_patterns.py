"""`--ignore` and recipes by patterns of names, in every command that takes them."""

import torch
from safetensors.torch import load_file, save_file

import waterfill

RECIPES = "conv: Prune(keep=0.5); *: Quantize(bits=4)"
GIVEN = ("--price", "0.01", "--ignore", "head", "--ignore", "re:nothing|head", "--recipe", RECIPES)


def test_compress_and_plan_keep_what_is_ignored_and_take_recipes_by_pattern(run, checkpoint, tmp_path) -> None:
    out, given = tmp_path / "small.wf", [text.replace("nothing|", "") for text in GIVEN]
    planned = {row["name"]: row["reason"] for row in run("plan", checkpoint, *given, "--json").json["tensors"]}
    made = run("compress", checkpoint, *given, "-o", out, "--json")
    assert made.code == 0, made.err
    rows = {row["name"]: row for row in made.json["tensors"]}
    assert planned == {name: row["reason"] for name, row in rows.items()}
    assert rows["head.twin"]["reason"] == rows["head.bias"]["reason"] == "ignored: kept bit for bit"
    assert "kept" in rows["conv.weight"]["part"]
    recipe = "head: lossless; re:head: lossless; conv: Prune(keep=0.5"
    assert made.json["recipe"].startswith(recipe) and run("info", out, "--json").json["recipe"].startswith(recipe)
    assert torch.equal(waterfill.load(out).state_dict()["head.weight"], load_file(checkpoint)["head.weight"])


def test_what_has_no_effect_is_said(run, checkpoint, tmp_path) -> None:
    for command in ("compress", "plan"):
        ran = run(command, checkpoint, "--ignore", "lm_head", *(("-o", tmp_path / "x.wf") * (command == "compress")))
        assert ran.code == 2 and "'lm_head' matches no tensor" in ran.err and "head.weight" in ran.err
        ran = run(command, checkpoint, "--ignore", "head", "--lossless")
        assert ran.code == 2 and "leave ignore= out" in ran.err


def test_with_data_and_where_learning_cannot_take_them(run, tmp_path, monkeypatch) -> None:
    name = f"nets_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def net():\n    return nn.Sequential(nn.Linear(20, 24), nn.Linear(24, 9))\n\n"
        "def some():\n    return list(torch.randn(32, 20).split(8))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    state = torch.nn.Sequential(torch.nn.Linear(20, 24), torch.nn.Linear(24, 9)).state_dict()
    save_file(state, "model.safetensors")
    common = ("model.safetensors", "--price", "0.001", "--network", f"{name}:net", "--data", f"{name}:some", "--json")
    made = run("compress", *common, "--ignore", "0.weight", "--recipe", "1: Codebook(levels=4); *: Quantize()")
    assert made.code == 0, made.err
    rows = {row["name"]: row for row in made.json["tensors"]}
    assert rows["1.weight"]["part"] == "4 levels"
    assert torch.equal(waterfill.load("model.wf").state_dict()["0.weight"], state["0.weight"])
    learned = ("--recipe", "1.weight: Codebook(levels=4); 0.weight: Codebook(levels=2)", "--force")
    refused = run("learn", *common, *learned)
    assert refused.code == 2 and 'method="lc"' in refused.err
