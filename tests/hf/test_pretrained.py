"""`from_pretrained` and `save_pretrained` of transformers on compressed folders, and what they refuse."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs transformers, the extra [hf]: `make test-hf`")

from tests.support.hf_models import build, inputs_of, language_model

import waterfill
import waterfill.hf
from waterfill.errors import BadInput, CorruptFile, Mismatch, OutputExists
from waterfill.hf.plugin.quantizer import WaterfillConfig

TOKENS = inputs_of("Llama")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A compressed language model whose original lies in shards, with a generation config of its own."""
    path = tmp_path_factory.mktemp("language")
    language_model(path / "original", max_shard_size="100kB")
    assert (path / "original" / "model.safetensors.index.json").exists()
    (path / "original" / "generation_config.json").write_text(json.dumps({"max_new_tokens": 5, "do_sample": False}))
    waterfill.hf.compress_folder(path / "original", path / "small", bits=4.5)
    return path / "small"


@pytest.fixture
def own(small, tmp_path) -> Path:
    """A copy of the folder, to break."""
    waterfill.hf.load(small).save_pretrained(tmp_path / "own")
    return tmp_path / "own"


def test_every_way_of_transformers_leads_to_the_same_model(small):
    expected = waterfill.hf.load(small)(**TOKENS).logits
    ways = (transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM)
    for way in ways:
        assert torch.equal(way.from_pretrained(small)(**TOKENS).logits, expected)
    pipeline = transformers.pipeline("text-generation", model=str(small))
    assert pipeline.model.generation_config.max_new_tokens == 5
    assert len(pipeline("w1 w2 w3", max_new_tokens=5, return_tensors=True)[0]["generated_token_ids"]) == 8
    body = transformers.AutoModel.from_pretrained(small)
    assert torch.equal(waterfill.hf.load(small).model(**TOKENS)[0], body(**TOKENS)[0])


def test_dtype_and_packing_are_asked_for_as_usual(small):
    half = transformers.AutoModelForCausalLM.from_pretrained(small, dtype=torch.bfloat16)
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}
    how = WaterfillConfig(packed=True, input_bits=8)
    packed = transformers.AutoModelForCausalLM.from_pretrained(small, quantization_config=how, dtype=torch.bfloat16)
    assert packed(**TOKENS).logits.dtype == torch.bfloat16
    packed.tie_weights()  # as other libraries call it
    assert packed.lm_head.term is packed.model.embed_tokens.term  # tied: once in memory
    held = sum(
        v.numel() * v.element_size() for v in {id(v): v for v in [*packed.parameters(), *packed.buffers()]}.values()
    )
    assert held < sum(value.numel() * 4 for value in waterfill.hf.load(small).parameters()) / 2


def test_a_packed_model_generates_what_the_dense_one_does(small):
    prompt = TOKENS["input_ids"][:1]
    dense, packed = waterfill.hf.load(small), waterfill.hf.load(small, packed=True)
    assert torch.equal(dense.generate(prompt), packed.generate(prompt)) and dense.generate(prompt).shape[1] == 21


WITHOUT_US = """
import sys, transformers
for kind in (transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM):
    try:
        kind.from_pretrained(sys.argv[1])
    except OSError as error:
        assert "no file named model.safetensors" in str(error)
    else:
        raise SystemExit("loaded")
assert "waterfill" not in sys.modules
"""


def test_without_our_import_nothing_is_loaded(small):
    """The worst that could happen is a model of random weights and a mere warning."""
    ran = subprocess.run([sys.executable, "-c", WITHOUT_US, str(small)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_config_of_ours_takes_other_weights_too(small):
    model = waterfill.hf.load(small)
    again = type(model).from_pretrained(None, config=model.config, state_dict=build("Llama").state_dict())
    assert torch.equal(again(**TOKENS).logits, build("Llama")(**TOKENS).logits)
    with pytest.raises(BadInput, match="compress_folder"):
        waterfill.hf.save(again, small)


def test_other_folders_are_read_and_written_as_before(tmp_path):
    model = language_model(tmp_path / "plain")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.equal(again(**TOKENS).logits, model(**TOKENS).logits)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").exists()


def test_weights_that_the_file_lacks_are_never_made_up(small):
    with pytest.raises(Mismatch, match=r"score\.weight"):
        transformers.AutoModelForSequenceClassification.from_pretrained(small)
    config = transformers.AutoConfig.from_pretrained(small)
    config.num_hidden_layers = 3
    with pytest.raises(Mismatch, match=r"layers\.2"):
        transformers.AutoModelForCausalLM.from_pretrained(small, config=config)


def test_a_changed_model_is_not_saved_as_the_old_file(small, tmp_path):
    model = waterfill.hf.load(small)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1
    with pytest.raises(BadInput, match="dequantize"):
        model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()
    twin.save_pretrained(tmp_path / "twin")
    model.dequantize()
    model.save_pretrained(tmp_path / "plain")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.equal(plain(**TOKENS).logits, model(**TOKENS).logits)
    with pytest.raises(OutputExists, match=r"model\.safetensors"):
        twin.save_pretrained(tmp_path / "plain")


def test_what_cannot_be_done_with_a_loaded_model_says_so(small, own, tmp_path):
    packed = waterfill.hf.load(own, packed=True)
    with pytest.raises(BadInput, match="without packed=True"):
        packed.dequantize()
    (own / "model.wf").unlink()
    with pytest.raises(BadInput, match="load the model again"):
        packed.save_pretrained(tmp_path / "again")
    with pytest.raises(BadInput, match="compress_folder"):
        waterfill.hf.save(build("Llama"), tmp_path / "again")
    with pytest.raises(BadInput, match="upload"):
        waterfill.hf.load(small).save_pretrained(tmp_path / "again", push_to_hub=True)
    with pytest.raises(BadInput, match="on the CPU"):
        waterfill.hf.load(small, packed=True, device_map="auto")
    with pytest.raises(BadInput, match="WaterfillConfig"):
        other = transformers.TorchAoConfig
        transformers.AutoModelForCausalLM.from_pretrained(small, quantization_config=object.__new__(other))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architectures": ["LlamaForTelepathy"]}, "has no class 'LlamaForTelepathy'"),
        ({"architectures": None}, "names no architectures"),
        ({"quantization_config": None}, "not compressed"),
        ({"quantization_config": {"quant_method": "awq"}}, "'awq'"),
    ],
)
def test_a_config_that_names_something_else_is_refused(own, changes, says):
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(BadInput, match=says):
        waterfill.hf.load(own)


@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_file_is_refused(own, packed):
    data = bytearray((own / "model.wf").read_bytes())
    data[len(data) // 3] ^= 4
    (own / "model.wf").write_bytes(data)
    with pytest.raises(CorruptFile, match="checksum"):
        waterfill.hf.load(own, packed=packed)
    (own / "model.wf").unlink()
    with pytest.raises(BadInput, match=r"holds no model\.wf"):
        waterfill.hf.load(own, packed=packed)
