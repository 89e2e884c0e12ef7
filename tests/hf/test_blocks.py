"""Folders of language models block by block: the same file as in memory, from one block at a time, whenever killed."""

import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs transformers, the extra [hf]: `make test-hf`")

from tests.support.hf_models import language_model, write_text

import waterfill
import waterfill.hf
from waterfill import Options
from waterfill.cli import main
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.job import Job
from waterfill.compression.options import Steps
from waterfill.errors import BadInput, PlanMismatch
from waterfill.hf import Windows, blocks, original
from waterfill.hf.original import original_model, original_tokenizer
from waterfill.network.checkpoint import open_checkpoint

WINDOWS = Windows(8, 16)
BY_BLOCKS = Options(blocks="model.layers", threads=1, steps=Steps(probes=1))


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """A folder with a language model in shards, "original", and a text."""
    path = tmp_path_factory.mktemp("blocks")
    language_model(path / "original", max_shard_size="100KB")
    write_text(path / "text.txt", 300)
    return path


def compressed(places: Path, target: Path, **changes) -> bytes:
    text, price = changes.pop("text", places / "text.txt"), changes.pop("price", None)
    budget = {"bits": 3.5} if price is None else {"price": price}
    options = replace(BY_BLOCKS, **changes)
    waterfill.hf.compress_folder(
        places / "original", target, "Quantize()", **budget, text=text, windows=WINDOWS, options=options
    )
    return (target / "model.wf").read_bytes()


def test_a_folder_gives_the_weights_that_its_model_in_memory_gives(places, tmp_path):
    compressed(places, tmp_path / "small", price=1e-5)
    model = original_model(places / "original")
    batches = WINDOWS.batches(WINDOWS.of(places / "text.txt", original_tokenizer(places / "original")))
    memory = waterfill.compress(model, batches, spec="Quantize()", price=1e-5, options=BY_BLOCKS)
    made = waterfill.load(tmp_path / "small" / "model.wf")
    assert {name: e.blob for name, e in made.entries.items()} == {name: e.blob for name, e in memory.entries.items()}
    assert made.notes["blocks"] == "model.layers" and sorted(p.name for p in tmp_path.iterdir()) == ["small"]
    loaded = waterfill.hf.load(tmp_path / "small")
    assert loaded(**batches[0]).logits.shape == (8, 16, 128)


def test_one_block_is_in_memory_at_a_time(places):
    model = original.structure_of(places / "original")
    assert all(parameter.is_meta for parameter in model.parameters())
    task = Job.of(places / "original", "Quantize()", waterfill.Budget(bits=3)).task
    source = blocks.source_on_disk(model, open_checkpoint(places / "original"), task, None)
    held = [name for name, parameter in source.model.named_parameters() if not parameter.is_meta]
    assert held == ["model.embed_tokens.weight", "model.norm.weight"]
    first = weakref.ref(source.original(0))
    second = source.original(1)
    gc.collect()
    assert first() is None and source.original(1) is second
    expected = original_model(places / "original").model.layers[1].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in second.state_dict().items())


@pytest.mark.parametrize("moment", [8, 26, *(pytest.param(m, marks=pytest.mark.slow) for m in (1, 17))])
def test_killed_at_any_weight_the_next_run_writes_the_same_bytes(places, tmp_path, monkeypatch, moment, whole_file):
    plain, fitted = Weight.fit, []

    def fit(self: Weight, price: float):
        fitted.append(self.name)
        if len(fitted) == moment:
            raise KeyboardInterrupt
        return plain(self, price)

    with monkeypatch.context() as patch:
        patch.setattr(Weight, "fit", fit)
        with pytest.raises(KeyboardInterrupt):
            compressed(places, tmp_path / "small")
    assert not (tmp_path / "small").exists() and (tmp_path / "small.work").is_dir()
    with monkeypatch.context() as patch:
        patch.setattr(Weight, "fit", lambda self, price: (fitted.append(self.name), plain(self, price))[1])
        count = len(fitted)
        assert compressed(places, tmp_path / "small") == whole_file
    assert moment < 17 or "model.embed_tokens.weight" not in fitted[count:]  # what was finished was not fitted again
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small"]


@pytest.fixture(scope="module")
def whole_file(places, tmp_path_factory) -> bytes:
    return compressed(places, tmp_path_factory.mktemp("whole") / "small")


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_while_it_measures_the_next_run_goes_on(places, tmp_path, stage, whole_file):
    def stop(progress: waterfill.Progress) -> None:
        if progress.stage == "measuring" and progress.done == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compressed(places, tmp_path / "small", progress=stop)
    assert len(list((tmp_path / "small.work").rglob("measured-*"))) == stage
    assert compressed(places, tmp_path / "small") == whole_file


def test_another_text_in_the_same_work_directory_is_refused(places, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Weight, "fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            compressed(places, tmp_path / "small")
    other = tmp_path / "other.txt"
    other.write_text(" ".join(reversed((places / "text.txt").read_text().split())))
    with pytest.raises(PlanMismatch, match="its text is"):
        compressed(places, tmp_path / "small", text=other)


def test_the_command_takes_the_blocks_by_name(places, tmp_path, capsys):
    words = ["compress", str(places / "original"), "-o", str(tmp_path / "small"), "--bits", "4", "--quiet", "--json"]
    words += ["--recipe", "Quantize()", "--text", str(places / "text.txt"), "--tokens", "8x16"]
    assert main([*words, "--blocks", "model.layers"]) == 0
    assert waterfill.load(tmp_path / "small" / "model.wf").notes["blocks"] == "model.layers"
    capsys.readouterr()
    assert main([*words, "--blocks", "model.layerz", "--force"]) == 4
    assert "no module 'model.layerz'" in capsys.readouterr().err


def damaged(source: Path, target: Path, what: str) -> Path:
    shutil.copytree(source, target)
    index = next(target.glob("*.index.json"))
    names = json.loads(index.read_text())["weight_map"]
    if what == "shard":
        (target / names["model.layers.1.mlp.up_proj.weight"]).unlink()
    else:
        (target / "tokenizer.json").unlink()
        (target / "tokenizer_config.json").unlink()
    return target


@pytest.mark.parametrize(("what", "said"), [("shard", "is missing"), ("tokenizer", "no tokenizer")])
def test_what_is_missing_is_said(places, tmp_path, what, said):
    folder = damaged(places / "original", tmp_path / "original", what)
    with pytest.raises(BadInput, match=said):
        compressed(tmp_path, tmp_path / "small", text=places / "text.txt")
    assert folder.exists() and not (tmp_path / "small").exists()


def test_an_empty_text_is_refused(places, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(BadInput, match="has 0 tokens"):
        compressed(places, tmp_path / "small", text=tmp_path / "empty.txt")
