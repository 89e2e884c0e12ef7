"""Files of GGUF: blocks against the package's own dequantization, whole models against transformers and llama.cpp."""

import json

import pytest

pytest.importorskip("gguf", reason='needs gguf: pip install "waterfill[export]"')
pytest.importorskip("transformers", reason='needs transformers: pip install "waterfill[export]"')
pytest.importorskip("accelerate", reason='needs accelerate: pip install "waterfill[export]"')

import gguf
import numpy as np
import torch
import transformers
from tests.support.hf_models import build, inputs_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import waterfill.hf
from waterfill.errors import BadInput, CannotExport, OutputExists
from waterfill.export import How, export
from waterfill.export.gguf.blocks import blocks_of, why_not
from waterfill.importance import Importance

VOCABULARY = 128


def save_tokenizer(folder):
    """Byte pairs over bytes, cut as SmolLM2's are: the letters, a few pairs, two special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 6]
    merges = [("a", "b"), ("ab", "a"), ("b", "a"), ("!", "a")]
    tokens = [*letters, *(left + right for left, right in merges)]
    made = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(tokens)}, merges=merges))
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)


@pytest.fixture
def folder(tmp_path):
    """`folder(recipe)` is a small Llama with its tokenizer, compressed by a recipe."""
    build("Llama").save_pretrained(tmp_path / "net")
    save_tokenizer(tmp_path / "net")

    def compressed(recipe):
        fixed = waterfill.parse(recipe).fixed_rate
        waterfill.hf.compress_folder(tmp_path / "net", tmp_path / "small", recipe, **({} if fixed else {"bits": 5}))
        return tmp_path / "small"

    return compressed


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("Quantize(bits=4, group=32)", "Q4_0"),
        ("Quantize(bits=3, group=64)", "Q4_0"),
        ("Quantize(bits=4, group=32, symmetric=False)", "Q4_1"),
        ("Quantize(bits=5, group=32)", "Q5_0"),
        ("Quantize(bits=8, group=32)", "Q8_0"),
        ("Quantize(bits=2, group=256)", "TQ2_0"),
        ('Codebook(values="ternary")', "TQ2_0"),
    ],
)
def test_blocks_stand_for_the_same_numbers(spec, kind):
    weight = torch.randn(6, 512, generator=torch.Generator().manual_seed(3))
    codes = waterfill.parse(spec).fit(weight, Importance(), 1e-4).product()
    assert why_not(codes) is None
    blocks = blocks_of(codes)
    assert blocks.type == kind
    restored = gguf.quants.dequantize(blocks.data, getattr(gguf.GGMLQuantizationType, kind))
    assert np.array_equal(restored, blocks.values)
    exact = codes.matrix().numpy()  # but for float16 offsets and scales, where the recipe has wider ones
    assert np.abs(restored - exact).max() <= (2e-3 if kind in ("Q4_1", "TQ2_0") else 0) * np.abs(exact).max()


def test_what_blocks_do_not_hold_is_said():
    weight = torch.randn(6, 96, generator=torch.Generator().manual_seed(3))
    parts = {spec: waterfill.parse(spec).fit(weight, Importance(), 1e-4) for spec in ("Quantize(bits=4, group=48)",)}
    assert "no multiple of 32" in why_not(parts["Quantize(bits=4, group=48)"].product())
    narrow = waterfill.parse("Quantize(bits=4)").fit(weight[:, :40], Importance(), 1e-4)
    assert "40 columns" in why_not(narrow.product())


def logits(model):
    with torch.no_grad():
        return model(**inputs_of("Llama")).logits


def test_queries_kept_bit_for_bit_are_in_the_order_of_llama_cpp(folder, tmp_path):
    original = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "net")
    waterfill.hf.compress_folder(tmp_path / "net", tmp_path / "exact", lossless=True)
    export(tmp_path / "exact", tmp_path / "a.gguf", "gguf", how=How(dtype="float32"))
    written = {t.name: torch.tensor(t.data) for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    weights = original.model.layers[1].self_attn
    for name, weight in (("q", weights.q_proj.weight), ("k", weights.k_proj.weight)):
        heads = written[f"blk.1.attn_{name}.weight"].unflatten(0, (-1, original.config.head_dim))
        half = weight.detach().unflatten(0, (-1, 2, original.config.head_dim // 2))
        assert torch.equal(heads[:, 0::2], half[:, 0])
        assert torch.equal(heads[:, 1::2], half[:, 1])
    assert torch.equal(written["blk.1.attn_v.weight"], weights.v_proj.weight.detach())


@pytest.mark.filterwarnings("ignore")  # of the libraries that load
@pytest.mark.parametrize("recipe", ["Quantize(bits=4, group=32)", "Quantize(bits=8, group=32)"])
def test_transformers_reads_the_same_model_and_tokenizer(folder, tmp_path, recipe):
    small = folder(recipe)
    done = export(small, tmp_path / "a.gguf", "gguf")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32).eval()
    ours = logits(waterfill.hf.load(small).eval())
    assert float((logits(loaded) - ours).norm() / ours.norm()) < 1e-5
    assert done.loss < 1e-6 and done.size == (tmp_path / "a.gguf").stat().st_size
    read = gguf.GGUFReader(tmp_path / "a.gguf")
    assert {t.name for t in read.tensors} >= {"token_embd.weight", "blk.1.attn_q.weight", "output_norm.weight"}
    assert "output.weight" not in {t.name for t in read.tensors}  # it is the embedding
    tokens = read.fields["tokenizer.ggml.tokens"].contents()
    ids = transformers.AutoTokenizer.from_pretrained(small).get_vocab()
    assert all(tokens[number] == token for token, number in ids.items()) and len(tokens) == VOCABULARY
    assert read.fields["tokenizer.ggml.pre"].contents() == "smollm"


def test_llama_cpp_runs_the_file(folder, tmp_path):
    xllamacpp = pytest.importorskip("xllamacpp", reason="needs xllamacpp, a build of llama.cpp")
    small = folder("Quantize(bits=8, group=32)")
    export(small, tmp_path / "a.gguf", "gguf")
    words = xllamacpp.CommonParams()
    words.model.path, words.n_ctx, words.cpuparams.n_threads, words.warmup = str(tmp_path / "a.gguf"), 64, 1, False
    server = xllamacpp.Server(words)
    text = "abba ab!"
    numbers = transformers.AutoTokenizer.from_pretrained(small)(text, add_special_tokens=False)["input_ids"]
    asked = {"prompt": numbers, "max_tokens": 1, "temperature": 0.0, "logprobs": 10, "n_probs": 10}
    answer = server.handle_completions(asked)
    found = {each["id"]: each["logprob"] for each in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
    with torch.no_grad():
        ours = waterfill.hf.load(small).eval()(input_ids=torch.tensor([numbers])).logits[0, -1].log_softmax(-1)
    assert len(found) == 10 and all(abs(float(ours[at]) - value) < 0.05 for at, value in found.items())


@pytest.mark.parametrize(("window", "context"), [(24, 24), (10**6, None), (None, None)])
def test_attention_that_slides_a_window_has_no_more_context(folder, tmp_path, window, context):
    small = folder("Quantize(bits=8, group=32)")
    config = json.loads((small / "config.json").read_text()) | {"model_type": "mistral", "sliding_window": window}
    (small / "config.json").write_text(json.dumps(config))
    export(small, tmp_path / "a.gguf", "gguf")
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert fields["llama.context_length"].contents() == (context or config["max_position_embeddings"])
    assert ("llama.attention.sliding_window" in fields) == (window is not None)


@pytest.mark.filterwarnings("ignore")  # of the libraries that load
def test_a_folder_takes_no_more_than_the_budget(folder, tmp_path):
    folder("Quantize(bits=4, group=32)")  # makes the model
    sizes = {}
    for size in (70_000, 100_000):
        waterfill.hf.compress_folder(tmp_path / "net", tmp_path / f"{size}", size=size, format="gguf")
        done = export(tmp_path / f"{size}", tmp_path / f"{size}.gguf", "gguf")
        assert 0.6 * size < done.size <= size and done.loss < 1e-3
        read = gguf.GGUFReader(tmp_path / f"{size}.gguf")
        sizes[size] = sum(tensor.n_bytes for tensor in read.tensors)
        assert {tensor.tensor_type.name for tensor in read.tensors} <= {"Q4_0", "Q4_1", "Q5_0", "Q8_0", "F32"}
    assert sizes[70_000] < sizes[100_000]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="100000.gguf", dtype=torch.float32
    ).eval()
    ours = logits(waterfill.hf.load(tmp_path / "100000").eval())
    assert float((logits(loaded) - ours).norm() / ours.norm()) < 1e-3


def test_what_cannot_be_written_is_refused_and_leaves_nothing(folder, tmp_path):
    small = folder("Quantize()")
    with pytest.raises(CannotExport, match="scales of columns|no block has"):
        export(small, tmp_path / "a.gguf", "gguf")
    done = export(small, tmp_path / "a.gguf", "gguf", how=How(requantize=4))
    assert 0.02 < done.loss < 0.2 and {row.form for row in done.rows} <= {"Q4_0", "Q8_0", "F32"}
    with pytest.raises(OutputExists):
        export(small, tmp_path / "a.gguf", "gguf", how=How(requantize=4))
    with pytest.raises(BadInput, match="give the folder"):
        export(small / "model.wf", tmp_path / "b.gguf", "gguf")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(CannotExport, match="models like Llama .*'gpt2'"):
        export(small, tmp_path / "b.gguf", "gguf", how=How(requantize=4))
    (small / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    with pytest.raises(CannotExport, match="SiLU, .* 'gelu'"):  # it was written, and ran with another function
        export(small, tmp_path / "b.gguf", "gguf", how=How(requantize=4))
    (small / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((small / "tokenizer.json").read_text())
    tokenizer["model"]["type"] = "Unigram"
    (small / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CannotExport, match="is Unigram"):
        export(small, tmp_path / "b.gguf", "gguf", how=How(requantize=4))
    assert not (tmp_path / "b.gguf").exists()
