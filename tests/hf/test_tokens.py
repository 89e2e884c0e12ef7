"""One token at a time through a packed decoder, by the short way, beside the forward pass of transformers."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

transformers = pytest.importorskip("transformers", reason="needs transformers, the extra [hf]: `make test-hf`")

import torch
from tests.support.hf_models import VOCABULARY, build
from torch import Tensor, nn

import waterfill
from waterfill.coding import native
from waterfill.errors import BadInput
from waterfill.runtime.decoder import token

pytestmark = pytest.mark.skipif(native.core is None, reason="needs the compiled core: `make native`")
SUM = "Quantize(bits=3) + Prune(keep=0.05)"
LENGTH = 9


def decoder(family: str) -> nn.Module:
    """A small decoder of a family, with fewer heads of keys than of queries."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    own: dict[str, Any] = {"Mistral": {"sliding_window": None}, "Llama": {"attention_bias": True, "mlp_bias": True}}
    config = getattr(transformers, f"{family}Config")(**sizes, **heads, **own.get(family, {}))
    model: nn.Module = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(value, std=0.1)
    return model.eval()


def packed(family: str, spec: str = "Quantize(bits=4)", **options: Any) -> nn.Module:
    compressed = waterfill.compress(decoder(family), spec=spec, price=1e-3)
    return waterfill.pack(compressed, decoder(family), **options)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Whether each layer took the short way, call by call."""
    taken: list[bool] = []
    through = token.through

    def watched(*given: Any) -> Tensor | None:
        made = through(*given)
        taken.append(made is not None)
        return made

    with monkeypatch.context() as patched:
        patched.setattr(token, "through", watched)
        yield taken


def logits(model: nn.Module, rows: int = 1, **given: Any) -> Tensor:
    """Of a prompt of four tokens and of the rest one by one: [rows, LENGTH, tokens]."""
    tokens = torch.randint(0, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model(tokens[:, :4], use_cache=True, **given)
        rest, made = found.past_key_values, [found.logits]
        for at in range(4, LENGTH):
            made.append(model(tokens[:, at : at + 1], past_key_values=rest, use_cache=True, **given).logits)
    return torch.cat(made, 1)


def long_way(model: nn.Module, monkeypatch: pytest.MonkeyPatch, **given: Any) -> Tensor:
    with monkeypatch.context() as patched:
        patched.setattr(token, "through", lambda *_: None)
        return logits(model, **given)


quiet = pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")


@quiet
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


@quiet
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_of_16_bits_go_the_short_way_too(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed("Qwen2").to(dtype)
    with counted(monkeypatch) as taken:
        mine = logits(model)
    assert any(taken) and mine.dtype == dtype
    assert torch.allclose(mine.float(), long_way(model, monkeypatch).float(), atol=0.05)


@quiet
def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, threads = packed("Llama"), torch.get_num_threads()
    one = logits(model)
    try:
        torch.set_num_threads(2)
        assert torch.equal(logits(model), one)
    finally:
        torch.set_num_threads(threads)


def hooked(layer: Any) -> None:
    layer.self_attn.q_proj.register_forward_hook(lambda *_: None)


def own_forward(layer: Any) -> None:
    layer.mlp.forward = torch.zeros_like


def another_activation(layer: Any) -> None:
    layer.mlp.act_fn = nn.GELU()


def another_norm(layer: Any) -> None:
    layer.input_layernorm = nn.RMSNorm(64).requires_grad_(False)


def no_norm(layer: Any) -> None:
    layer.post_attention_layernorm = nn.Identity()


def no_inner_layers(layer: Any) -> None:
    layer.mlp = nn.Identity()


def wrapped(layer: Any) -> None:
    layer.self_attn.q_proj = nn.Sequential(layer.self_attn.q_proj)


def dense(layer: Any) -> None:
    layer.self_attn.k_proj = nn.Linear(64, 32).requires_grad_(False)


def short_bias(layer: Any) -> None:
    layer.mlp.up_proj.bias = nn.Parameter(torch.ones(1), requires_grad=False)  # which PyTorch spreads


def own_forward_of_a_term(layer: Any) -> None:
    term = layer.mlp.down_proj.term
    term.forward = lambda x: 2 * type(term).forward(term, x)


CHANGES = [
    hooked,
    own_forward,
    own_forward_of_a_term,
    another_activation,
    another_norm,
    no_norm,
    no_inner_layers,
    wrapped,
    dense,
    short_bias,
]


@quiet
@pytest.mark.parametrize("seen", [False, True], ids=["new", "seen"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_layer_that_was_changed_runs_its_forward_pass(
    change: Callable[[Any], None], seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed("Llama")
    if seen:
        logits(model)
    for layer in model.model.layers:
        change(layer)
    with counted(monkeypatch) as taken:
        mine = logits(model)
    assert taken and not any(taken)
    assert torch.equal(mine, long_way(model, monkeypatch))


@quiet
@pytest.mark.parametrize("name", ["scales", "data", "input_layernorm.weight", "up_proj"])
def test_numbers_that_lie_elsewhere_are_found_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed("Llama")
    before = logits(model)
    for layer in model.model.layers:
        for own, value in [*layer.named_buffers(), *layer.named_parameters()]:
            if name in own and value is not None:
                value.data = value.data * 2 if value.is_floating_point() else value.data.clone()
    rest = [torch.full((64,), 7.0) for _ in range(300)]  # which takes the place of what was there
    with counted(monkeypatch) as taken:
        mine = logits(model)
    assert any(taken) and len(rest) == 300
    assert torch.allclose(mine, long_way(model, monkeypatch), atol=1e-3)
    assert torch.equal(mine, before) == (name == "data")


@quiet
@pytest.mark.parametrize("change", [another_norm, no_norm, no_inner_layers], ids=lambda change: change.__name__)
def test_a_layer_that_was_changed_before_can_be_packed(change: Callable[[Any], None]) -> None:
    model, other = decoder("Llama"), decoder("Llama")
    for one in (model, other):
        change(one.model.layers[0])
    made = waterfill.pack(waterfill.compress(model, spec="Quantize(bits=4)", price=1e-3), other)
    assert torch.isfinite(logits(made)).all()


@quiet
def test_a_class_that_was_changed_runs_its_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed("Llama")
    monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", lambda self, x: torch.zeros_like(x))
    with counted(monkeypatch) as taken:
        logits(model)
    assert taken and not any(taken)


@quiet
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


@quiet
def test_gradients_are_refused_as_ever() -> None:
    model, token_of = packed("Llama"), torch.tensor([[3]])
    cache = model(token_of, use_cache=True).past_key_values
    model.model.layers[0].input_layernorm.weight.requires_grad_(True)
    with pytest.raises(BadInput, match="no gradients"):
        model(token_of, past_key_values=cache, use_cache=True)


@quiet
def test_what_layers_say_inside_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed("Llama")
    with torch.no_grad():
        found = model(torch.tensor([[1, 2, 3]]), use_cache=True, output_hidden_states=True)
        one = model(torch.tensor([[4]]), past_key_values=found.past_key_values, output_hidden_states=True)
    assert len(one.hidden_states) == 3
    with counted(monkeypatch) as taken:
        logits(model)
    assert any(taken)  # transformers leaves hooks behind


@quiet
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


@quiet
def test_a_hook_sees_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = packed("Llama"), []
    model.model.layers[0].mlp.gate_proj.term.register_forward_hook(lambda *_: seen.append(1))
    logits(model)
    model.model.layers[0].mlp.gate_proj.register_forward_hook(lambda *_: seen.append(1))
    seen.clear()
    logits(model)
    assert len(seen) >= LENGTH - 3


@quiet
def test_copies_take_the_short_way_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed("Llama")
    wanted = logits(model)
    made, given, _ = model.model.layers[0].__reduce_ex__(2)  # what pickles call
    assert type(made(*given)) is type(model.model.layers[0])
    with counted(monkeypatch) as taken:
        assert torch.equal(logits(copy.deepcopy(model)), wanted)
    assert any(taken)


@quiet
def test_generation_writes_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = packed("Llama", SUM), torch.arange(5)[None]
    settings = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    with counted(monkeypatch) as taken:
        mine = model.generate(prompt, **settings)
    assert any(taken)
    with monkeypatch.context() as patched:
        patched.setattr(token, "through", lambda *_: None)
        assert torch.equal(mine, model.generate(prompt, **settings))


@quiet
def test_sliding_windows_and_other_families_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    mixtral = build("Mixtral")
    model = waterfill.pack(waterfill.compress(mixtral, spec="Quantize(bits=4)", price=1e-3), build("Mixtral"))
    with counted(monkeypatch) as taken:
        logits(model)
    assert not taken
