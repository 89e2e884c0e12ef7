"""Folders of transformers models, compressed without transformers: what is copied, what is refused."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import waterfill
import waterfill.hf
from waterfill.cli import main
from waterfill.errors import BadInput, BadRecipe, BudgetError, CorruptFile, OutputExists
from waterfill.hf.staging import staged


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in shards, with a tokenizer, a card, weights of another format, and a hidden file."""
    path = tmp_path / "net"
    (path / "templates").mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    shards = {
        f"model-0000{i}-of-00002.safetensors": {f"{i}.weight": torch.randn(48, 64, generator=random).half()}
        for i in (1, 2)
    }
    for name, tensors in shards.items():
        save_file(tensors, path / name)
    index = {"weight_map": {key: name for name, tensors in shards.items() for key in tensors}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text(json.dumps({"architectures": ["Net"], "model_type": "net"}))
    for name in ("tokenizer.json", "README.md", "templates/chat.jinja", "pytorch_model.bin", ".hidden"):
        (path / name).write_text(f"this is {name}")
    return path


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_everything_beside_the_weights_is_copied_and_the_config_names_the_loader(folder, tmp_path):
    made = waterfill.hf.compress_folder(folder, tmp_path / "small", bits=3)
    small = tmp_path / "small"
    files = sorted(str(path.relative_to(small)) for path in small.rglob("*") if path.is_file())
    assert files == ["README.md", "config.json", "model.wf", "templates/chat.jinja", "tokenizer.json"]
    assert (small / "tokenizer.json").read_text() == "this is tokenizer.json"
    config = json.loads((small / "config.json").read_text())
    assert config["architectures"] == ["Net"] and config["quantization_config"] == {"quant_method": "waterfill"}
    assert config["dtype"] == "float16"  # else transformers would look for it in weights that it cannot read
    card = (small / "README.md").read_text()
    assert card.startswith("this is README.md") and "import waterfill.hf" in card
    assert made.size == (small / "model.wf").stat().st_size <= 3 * 2 * 48 * 64 / 8
    assert set(waterfill.load(small / "model.wf").state_dict()) == {"1.weight", "2.weight"}
    assert left(tmp_path) == ["net", "small"]


def test_folders_take_patterns_and_keep_what_is_ignored(folder, tmp_path, capsys):
    given = ["--ignore", "1.weight", "--recipe", "2: Codebook(levels=4)"]
    assert main(["compress", str(folder), "-o", str(tmp_path / "small"), "--price", "0.01", "--json", *given]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["recipe"] == "1.weight: lossless; 2: Codebook(levels=4)"
    assert [(row["part"], row["reason"]) for row in said["tensors"]][1] == ("4 levels", "")
    exact = load_file(folder / "model-00001-of-00002.safetensors")["1.weight"]
    assert torch.equal(waterfill.load(tmp_path / "small/model.wf").state_dict()["1.weight"], exact)
    with pytest.raises(BadRecipe, match="matches no tensor"):
        waterfill.hf.compress_folder(folder, tmp_path / "other", ignore=["lm_head"], bits=3)
    assert left(tmp_path) == ["net", "small"]


def test_the_command_writes_a_folder_or_a_file_as_its_output_is_named(folder, tmp_path, capsys):
    assert main(["compress", str(folder), "-o", str(tmp_path / "small"), "--bits", "3", "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == (tmp_path / "small" / "model.wf").stat().st_size and told["recipe"] == "Quantize()"
    assert main(["compress", str(folder), "-o", str(tmp_path / "small.wf"), "--bits", "3", "--quiet"]) == 0
    assert (tmp_path / "small.wf").read_bytes() == (tmp_path / "small" / "model.wf").read_bytes()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--text", "t.txt"], "-o OUT"),
        (["--tokens", "4x8", "-o", "out"], "--text"),
        (["--data", "x.npz", "-o", "out"], "--text"),
        (["--lossless", "--text", "t.txt", "-o", "out"], "every bit"),
    ],
)
def test_options_that_exclude_one_another_are_usage_errors(folder, options, says, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert main(["compress", str(folder), *options]) == 2
    assert says in capsys.readouterr().err


def test_lossless_keeps_every_bit(folder, tmp_path):
    waterfill.hf.compress_folder(folder, tmp_path / "small", lossless=True)
    for name, tensor in waterfill.load(tmp_path / "small" / "model.wf").state_dict().items():
        assert torch.equal(tensor, waterfill.network.checkpoint.open_checkpoint(folder).tensors[name].load())
    with pytest.raises(BadRecipe, match="no text"):
        waterfill.hf.compress_folder(folder, tmp_path / "other", lossless=True, text="t.txt")


def test_only_a_compressed_folder_is_replaced_and_only_if_asked(folder, tmp_path):
    target = tmp_path / "small"
    waterfill.hf.compress_folder(folder, target, bits=4)
    force = waterfill.Options(force=True)
    with pytest.raises(OutputExists, match="force"):
        waterfill.hf.compress_folder(folder, target, bits=3)
    made = waterfill.hf.compress_folder(folder, target, bits=3, options=force)
    assert (target / "model.wf").stat().st_size == made.size <= 3 * 2 * 48 * 64 / 8
    foreign = tmp_path / "photos"
    foreign.mkdir()
    with pytest.raises(OutputExists, match="never replaced"):
        waterfill.hf.compress_folder(folder, foreign, bits=3, options=force)
    with pytest.raises(BadInput, match="beside it"):
        waterfill.hf.compress_folder(folder, folder / "small", bits=3)
    with pytest.raises(BadInput, match="does not exist"):
        waterfill.hf.compress_folder(folder, tmp_path / "nowhere" / "small", bits=3)
    assert left(tmp_path) == ["net", "photos", "small"]


def test_what_cannot_be_made_leaves_nothing(folder, tmp_path):
    with pytest.raises(BudgetError):
        waterfill.hf.compress_folder(folder, tmp_path / "small", size=10)
    assert left(tmp_path) == ["net"]


def test_a_killed_run_leaves_the_old_folder_and_the_next_one_goes_on(folder, tmp_path):
    """As if it was killed between the two renames: the old folder comes back, whatever becomes of the new one."""
    target, work = tmp_path / "small", tmp_path / "small.work"
    waterfill.hf.compress_folder(folder, target, bits=4)
    before = (target / "model.wf").read_bytes()
    work.mkdir()
    os.rename(target, work / "before")
    with pytest.raises(OutputExists, match="exists"):
        waterfill.hf.compress_folder(folder, target, bits=3)
    with pytest.raises(RuntimeError), staged(target, True, folder) as staging:
        (staging.made / "half").write_text("half")
        raise RuntimeError
    assert (target / "model.wf").read_bytes() == before and left(tmp_path) == ["net", "small"]


def test_an_interrupted_run_keeps_the_weights_that_are_finished(folder, tmp_path):
    def stop(progress: waterfill.Progress) -> None:
        if progress.stage == "fitting" and progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        waterfill.hf.compress_folder(folder, tmp_path / "small", bits=3, options=waterfill.Options(stop, threads=1))
    assert left(tmp_path / "small.work") == ["weights"] and list((tmp_path / "small.work/weights").glob("*.blob"))
    waterfill.hf.compress_folder(folder, tmp_path / "small", bits=3)
    assert left(tmp_path) == ["net", "small"]


def test_a_work_directory_of_somebody_else_is_left_alone(folder, tmp_path):
    (tmp_path / "small.work").mkdir()
    (tmp_path / "small.work" / "thesis.tex").write_text("years")
    with pytest.raises(OutputExists, match=r"thesis\.tex"):
        waterfill.hf.compress_folder(folder, tmp_path / "small", bits=3)
    assert (tmp_path / "small.work" / "thesis.tex").read_text() == "years"


def damage(folder: Path, what: str) -> None:
    config, shard = folder / "config.json", folder / "model-00002-of-00002.safetensors"
    if what == "config":
        config.unlink()
    elif what == "json":
        config.write_text("{")
    elif what == "shard":
        shard.unlink()
    elif what == "cut":
        shard.write_bytes(shard.read_bytes()[:-10])
    else:
        config.write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        ("config", BadInput, "holds no config.json"),
        ("json", CorruptFile, "no JSON"),
        ("shard", BadInput, "shard model-00002-of-00002.safetensors is missing"),
        ("cut", CorruptFile, "model-00002"),
        ("quantized", BadInput, "gptq"),
    ],
)
def test_a_folder_that_lacks_something_is_refused_by_name(folder, tmp_path, what, error, says):
    damage(folder, what)
    with pytest.raises(error, match=says):
        waterfill.hf.compress_folder(folder, tmp_path / "small", bits=3)
    assert left(tmp_path) == ["net"]


def test_where_transformers_is_missing_the_extra_is_named(folder, tmp_path, monkeypatch):
    waterfill.hf.compress_folder(folder, tmp_path / "small", bits=3)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(BadInput, match=r"waterfill\[hf\]"):
        waterfill.hf.load(tmp_path / "small")
    (tmp_path / "t.txt").write_text("some words")
    with pytest.raises(BadInput, match=r"waterfill\[hf\]"):
        waterfill.hf.compress_folder(folder, tmp_path / "other", bits=3, text=tmp_path / "t.txt")


def test_where_the_harness_is_missing_the_extra_is_named(tmp_path):
    if importlib.util.find_spec("lm_eval") is not None:
        pytest.skip("lm-evaluation-harness is installed")
    with pytest.raises(BadInput, match=r"waterfill\[lm-eval\]"):
        waterfill.hf.lm_eval_model(tmp_path)


@pytest.mark.parametrize("text", ["128", "0x4", "4x1", "ax4", "x", "-1x8"])
def test_windows_without_meaning_are_refused(text):
    with pytest.raises(BadInput, match="windows"):
        waterfill.hf.Windows.parse(text)
