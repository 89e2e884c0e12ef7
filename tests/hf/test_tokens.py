"""One token at a time through a packed decoder, by the short way, beside the forward pass of transformers."""

import copy
from typing import Any

import pytest

transformers = pytest.importorskip("transformers", reason="needs transformers, the extra [hf]: `make test-hf`")

import torch
from tests.support.decoders import LENGTH, QUIET, SUM, counted, logits, long_way, packed
from tests.support.hf_models import build

import waterfill
from waterfill.coding import native
from waterfill.errors import BadInput
from waterfill.runtime.decoder import token

pytestmark = pytest.mark.skipif(native.core is None, reason="needs the compiled core: `make native`")


@QUIET
@pytest.mark.parametrize("input_bits", [8, 16, 24])
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2"])
def test_a_token_gives_what_the_forward_pass_gives(
    family: str, input_bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed(family, SUM, input_bits=input_bits)
    with counted(monkeypatch) as taken:
        mine = logits(model)
    assert taken == [False] * 2 + [True] * 2 * (LENGTH - 4)
    wanted = long_way(model, monkeypatch)
    assert torch.allclose(mine, wanted, atol=0.05 if input_bits == 8 else 1e-3)  # a rounded input may fall elsewhere
    assert torch.equal(mine[:, :4], wanted[:, :4])


@QUIET
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_of_16_bits_go_the_short_way_too(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed("Qwen2").to(dtype)
    with counted(monkeypatch) as taken:
        mine = logits(model)
    assert any(taken) and mine.dtype == dtype
    assert torch.allclose(mine.float(), long_way(model, monkeypatch).float(), atol=0.05)


@QUIET
def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, threads = packed("Llama"), torch.get_num_threads()
    one = logits(model)
    try:
        torch.set_num_threads(2)
        assert torch.equal(logits(model), one)
    finally:
        torch.set_num_threads(threads)


@QUIET
@pytest.mark.parametrize("given", [{"rows": 2}, {"attention": "eager"}], ids=["two rows", "a mask"])
def test_whatever_else_is_asked_for_runs_the_forward_pass(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed("Llama")
    model.set_attn_implementation(given.pop("attention", "sdpa"))
    with counted(monkeypatch) as taken:
        mine = logits(model, **given)
    assert taken and not any(taken)
    assert torch.equal(mine, long_way(model, monkeypatch, **given))


@QUIET
def test_gradients_are_refused_as_ever() -> None:
    model, token_of = packed("Llama"), torch.tensor([[3]])
    cache = model(token_of, use_cache=True).past_key_values
    model.model.layers[0].input_layernorm.weight.requires_grad_(True)
    with pytest.raises(BadInput, match="no gradients"):
        model(token_of, past_key_values=cache, use_cache=True)


@QUIET
def test_what_layers_say_inside_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed("Llama")
    with torch.no_grad():
        found = model(torch.tensor([[1, 2, 3]]), use_cache=True, output_hidden_states=True)
        one = model(torch.tensor([[4]]), past_key_values=found.past_key_values, output_hidden_states=True)
    assert len(one.hidden_states) == 3
    with counted(monkeypatch) as taken:
        logits(model)
    assert any(taken)  # transformers leaves hooks behind


@QUIET
def test_a_long_text_is_as_exact_as_a_short_one() -> None:
    """Attention to 50,000 tokens alike: the mean of their values, to float32."""
    model = packed("Llama")
    attention, cache = model.model.layers[0].self_attn, transformers.DynamicCache(config=model.config)
    for number in range(2):
        values = torch.rand(1, 2, 50_000, 16, generator=torch.Generator().manual_seed(number))
        cache.update(torch.zeros_like(values), values, number)
    wanted = cache.layers[0].values.double().mean(2).repeat_interleave(2, 1).reshape(-1)
    x = torch.zeros(1, 1, 64)
    angles = (torch.ones(1, 1, 16), torch.zeros(1, 1, 16))
    with torch.no_grad():
        made = model.model.layers[0](x, position_embeddings=angles, past_key_values=cache)
        after = attention.o_proj(wanted.float()[None, None])
        inner = model.model.layers[0].mlp(model.model.layers[0].post_attention_layernorm(after))
    assert torch.allclose(made, after + inner, rtol=1e-3, atol=1e-4)


@QUIET
def test_a_hook_sees_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = packed("Llama"), []
    model.model.layers[0].mlp.gate_proj.term.register_forward_hook(lambda *_: seen.append(1))
    logits(model)
    model.model.layers[0].mlp.gate_proj.register_forward_hook(lambda *_: seen.append(1))
    seen.clear()
    logits(model)
    assert len(seen) >= LENGTH - 3


@QUIET
def test_copies_take_the_short_way_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed("Llama")
    wanted = logits(model)
    made, given, _ = model.model.layers[0].__reduce_ex__(2)  # what pickles call
    assert type(made(*given)) is type(model.model.layers[0])
    with counted(monkeypatch) as taken:
        assert torch.equal(logits(copy.deepcopy(model)), wanted)
    assert any(taken)


@QUIET
def test_generation_writes_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = packed("Llama", SUM), torch.arange(5)[None]
    settings = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    with counted(monkeypatch) as taken:
        mine = model.generate(prompt, **settings)
    assert any(taken)
    with monkeypatch.context() as patched:
        patched.setattr(token, "through", lambda *_: None)
        assert torch.equal(mine, model.generate(prompt, **settings))


@QUIET
def test_sliding_windows_and_other_families_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    mixtral = build("Mixtral")
    model = waterfill.pack(waterfill.compress(mixtral, spec="Quantize(bits=4)", price=1e-3), build("Mixtral"))
    with counted(monkeypatch) as taken:
        logits(model)
    assert not taken
