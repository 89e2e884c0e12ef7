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
@pytest.mark.parametrize("input_bits", [8, 16])
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


def hooked(model: nn.Module) -> dict[str, Any]:
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: None)
    model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: None)
    return {}


def masked(model: nn.Module) -> dict[str, Any]:
    return {"attention_mask": torch.tensor([[0, *[1] * (LENGTH - 1)]])[:, :4]}


@quiet
@pytest.mark.parametrize(
    "change",
    [
        hooked,
        lambda model: model.model.layers.requires_grad_(False) and {"rows": 2},
        lambda model: model.set_attn_implementation("eager") or {},  # which is given a mask
    ],
    ids=["hooks", "two rows", "eager"],
)
def test_whatever_else_is_asked_for_runs_the_forward_pass(
    change: Callable[[nn.Module], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed("Llama")
    given = change(model)
    with counted(monkeypatch) as taken:
        mine = logits(model, **given)
    assert taken and not any(taken)
    assert torch.equal(mine, long_way(model, monkeypatch, **given))


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
