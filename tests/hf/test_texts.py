"""A text as inputs: to calibrate with, and to measure a language model on."""

import json
import math
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs transformers, the extra [hf]: `make test-hf`")

from tests.support.hf_models import build, language_model, write_text

import waterfill
import waterfill.hf
from waterfill.cli import main
from waterfill.errors import BadInput
from waterfill.hf import Windows


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """A folder with a language model, "original", and a text of 2000 words."""
    path = tmp_path_factory.mktemp("texts")
    language_model(path / "original")
    write_text(path / "text.txt", 2000)
    return path


def test_a_text_calibrates_and_the_model_comes_closer(places, capsys):
    common = [str(places / "original"), "--bits", "2", "--json", "--quiet", "--recipe", "Quantize()", "-o"]
    assert main(["compress", *common, str(places / "plain")]) == 0
    text = ["--text", str(places / "text.txt"), "--tokens", "32x24"]
    assert main(["compress", *common, str(places / "informed"), *text]) == 0
    capsys.readouterr()
    found = {}
    for name in ("plain", "informed"):
        ran = ["evaluate", str(places / name), *text, "--reference", str(places / "original"), "--json"]
        assert main(ran) == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert found["informed"]["divergence"] < 0.8 * found["plain"]["divergence"]
    assert found["informed"]["context"] == 24 and found["informed"]["predicted_tokens"] == 32 * 23
    assert (places / "informed" / "model.wf").stat().st_size <= (places / "plain" / "model.wf").stat().st_size * 1.01
    assert (places / "informed" / "tokenizer.json").exists()


def test_scores_are_those_of_the_windows_one_by_one(places):
    model = build("Llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(places / "original")
    scores = waterfill.hf.evaluate(model, places / "text.txt", tokenizer, Windows(5, 16), reference=model)
    numbers = [int(word[1:]) for word in (places / "text.txt").read_text().split()[: 5 * 16]]
    tokens = torch.tensor(numbers).reshape(5, 16)
    with torch.no_grad():
        losses = [float(model(input_ids=some[None], labels=some[None]).loss) for some in tokens]
    assert scores.perplexity == pytest.approx(math.exp(sum(losses) / 5), rel=1e-5)
    told = scores.as_json()
    assert told["divergence"] == 0 and told["agreement"] == 1 and (told["windows"], told["context"]) == (5, 16)
    assert "5 windows of 16 tokens" in scores.text()


def test_a_packed_model_is_measured_too(places, tmp_path, capsys, monkeypatch):
    loaded, load = [], waterfill.hf.load
    monkeypatch.setattr(waterfill.hf, "load", lambda *args, **how: loaded.append(load(*args, **how)) or loaded[-1])
    waterfill.hf.compress_folder(places / "original", tmp_path / "small", bits=4.5)
    text = ["--text", str(places / "text.txt"), "--tokens", "4x16", "--json"]
    perplexities = []
    for packed in ([], ["--packed"]):
        assert main(["evaluate", str(tmp_path / "small"), *text, *packed]) == 0
        perplexities.append(json.loads(capsys.readouterr().out)["perplexity"])
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-3)
    rows = [waterfill.runtime.table(model) for model in loaded]
    assert [all(row["runs"] == "packed" for row in some) for some in rows] == [False, True]


def test_texts_that_do_not_do_are_refused(places, tmp_path):
    model = build("Llama")
    folder, text = places / "original", places / "text.txt"
    with pytest.raises(BadInput, match="2000 tokens"):
        waterfill.hf.evaluate(model, text, folder, Windows(100, 32))
    with pytest.raises(BadInput, match="at most 64 tokens"):
        waterfill.hf.evaluate(model, text, folder, Windows(1, 65))
    with pytest.raises(BadInput, match="no next token"):
        waterfill.hf.evaluate(build("ViT"), text, folder)
    with pytest.raises(BadInput, match="no tokenizer"):
        waterfill.hf.evaluate(model, text, tmp_path, Windows(1, 8))
    with pytest.raises(BadInput, match="does not exist"):
        waterfill.hf.evaluate(model, tmp_path / "no.txt", folder, Windows(1, 8))
    (tmp_path / "picture").write_bytes(b"\xff\xd8\xff\xe0" * 9)
    with pytest.raises(BadInput, match="UTF-8"):
        waterfill.hf.evaluate(model, tmp_path / "picture", folder, Windows(1, 8))


def test_the_harness_gets_the_loaded_model(places, tmp_path):
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness, the extra [lm-eval]")
    waterfill.hf.compress_folder(places / "original", tmp_path / "small", bits=4.5)
    from lm_eval.api.instance import Instance

    tokens = torch.tensor([[1, 2, 3, 4]])
    for packed in (False, True):
        harness = waterfill.hf.lm_eval_model(tmp_path / "small", packed=packed, batch_size=1)
        asked = Instance(request_type="loglikelihood", doc={}, arguments=("w1 w2 w3", " w4 w5"), idx=0)
        with torch.no_grad():
            rows = waterfill.hf.load(tmp_path / "small", packed=packed)(tokens).logits[0].log_softmax(-1)
        assert harness.loglikelihood([asked])[0][0] == pytest.approx(float(rows[2, 4] + rows[3, 5]), rel=1e-4)
