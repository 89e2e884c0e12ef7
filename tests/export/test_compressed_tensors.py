"""Folders for vLLM are loaded by transformers with compressed-tensors, and compared with ours."""

import json

import pytest

pytest.importorskip("transformers", reason='needs transformers: pip install "waterfill[export]"')
pytest.importorskip("compressed_tensors", reason='needs compressed-tensors: pip install "waterfill[export]"')

import torch
import transformers
from safetensors.torch import load_file
from tests.support.hf_models import build, inputs_of, language_model

import waterfill.hf
from waterfill.errors import BadInput, CannotExport
from waterfill.export import How, export


@pytest.fixture
def folder(tmp_path):
    """`folder(recipe)` is a small language model compressed by a recipe."""
    language_model(tmp_path / "net")

    def compressed(recipe, name="small"):
        fixed = waterfill.parse(recipe).fixed_rate
        waterfill.hf.compress_folder(tmp_path / "net", tmp_path / name, recipe, **({} if fixed else {"bits": 5}))
        return tmp_path / name

    return compressed


def logits(model):
    with torch.no_grad():
        return model(**inputs_of("Llama")).logits


@pytest.mark.filterwarnings("ignore")  # of the libraries that load
@pytest.mark.parametrize(
    "recipe",
    ["Quantize(bits=4, group=32)", "Quantize(bits=3, group=32)", "Quantize(bits=8)", "Quantize(bits=5, group=16)"],
)
def test_transformers_reads_the_same_model(folder, tmp_path, recipe):
    small = folder(recipe)
    done = export(small, tmp_path / "out", "compressed-tensors")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ours = waterfill.hf.load(small).eval()
    # the embedding is dense and exact, the layers were packed
    assert torch.allclose(logits(loaded), logits(ours), rtol=0, atol=1e-5)
    forms = {row.name: row.form for row in done.rows}
    bits = int(recipe[recipe.index("=") + 1])
    assert forms["model.layers.0.mlp.up_proj.weight"] == f"{bits}-bit codes, scales in float32" and done.loss == 0
    packed = load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.mlp.up_proj.weight_packed"]
    assert packed.shape == (96, 64 * bits // 32) and packed.dtype == torch.int32
    assert (tmp_path / "out" / "tokenizer.json").exists() and not (tmp_path / "out" / "model.wf").exists()


@pytest.mark.filterwarnings("ignore")  # of the libraries that load
def test_the_folder_takes_no_more_than_the_budget(folder, tmp_path):
    folder("Quantize(bits=4, group=32)")  # makes the model
    sizes = []
    for size in (86_000, 96_000):
        small = tmp_path / f"{size}"
        waterfill.hf.compress_folder(tmp_path / "net", small, size=size, format="compressed-tensors")
        done = export(small, tmp_path / f"{size}.out", "compressed-tensors")
        assert 0.85 * size < done.size <= size and done.loss == 0
        sizes.append(done.size)
    assert sizes[0] < sizes[1]
    forms = {row.name: row.form for row in done.rows}
    fused = {forms[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qkv"}
    assert fused == {"4-bit codes, scales in float32"}  # one form, as runtimes put them together
    assert forms["model.embed_tokens.weight"] == "dense, float32"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "96000.out", dtype=torch.float32).eval()
    assert torch.allclose(logits(loaded), logits(waterfill.hf.load(small).eval()), rtol=0, atol=1e-5)


def test_what_it_lacks_is_refused_by_name_or_rounded_again(folder, tmp_path):
    small = folder("Codebook(levels=9)")
    with pytest.raises(
        CannotExport, match=r"'model.layers.0.mlp.down_proj.weight' \(no codes with scales\).*--requantize"
    ):
        export(small, tmp_path / "out", "compressed-tensors")
    assert not (tmp_path / "out").exists()
    done = export(small, tmp_path / "out", "compressed-tensors", how=How(requantize=4, group=32, dtype="float16"))
    losses = {row.name: row.loss for row in done.rows}
    assert 0.02 < losses["model.layers.0.mlp.down_proj.weight"] < 0.2 and losses["model.norm.weight"] == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"], config["dtype"]) == (4, 32, "float16")
    with pytest.raises(CannotExport, match="zero points"):
        export(folder("Quantize(bits=4, group=32, symmetric=False)", "b"), tmp_path / "b.out", "compressed-tensors")


def test_weights_alone_are_no_model_of_transformers(folder, tmp_path):
    with pytest.raises(BadInput, match="give the folder"):
        export(folder("Quantize(bits=4, group=32)") / "model.wf", tmp_path / "out", "compressed-tensors")


def test_the_dense_folder_is_an_ordinary_model(folder, tmp_path):
    small = folder("Quantize(bits=4, group=32)")
    export(small, tmp_path / "out", "safetensors", how=How(shard=60_000))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config and not (tmp_path / "out" / "model.wf").exists()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(loaded), logits(waterfill.hf.load(small).eval()))
    assert "Compressed with waterfill" not in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(BadInput, match="lies in"):
        export(small, small / "inside", "safetensors")


@pytest.mark.filterwarnings("ignore")  # of the libraries that load
@pytest.mark.parametrize("family", ["GPT2", "BERT", "Mixtral"])
def test_only_what_linear_layers_alone_hold_is_packed(tmp_path, family):
    # layers that are no linear ones, routers, and outputs tied to embeddings were packed, and read as random weights
    model = build(family)
    model.save_pretrained(tmp_path / "net")
    waterfill.hf.compress_folder(tmp_path / "net", tmp_path / "small", "Quantize(bits=4, group=32)")
    done = export(tmp_path / "small", tmp_path / "out", "compressed-tensors")
    loaded = type(model).from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = waterfill.hf.load(tmp_path / "small").eval()(**inputs_of(family))
        assert torch.allclose(loaded(**inputs_of(family)).logits, wanted.logits, rtol=0, atol=1e-5)
    assert any("codes" in row.form for row in done.rows) == (family != "GPT2")
    assert ("no linear layer of its own" in {row.why for row in done.rows}) == (family != "BERT")
