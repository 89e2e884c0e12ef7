"""Decoder layers in which something changes, before they were looked at and after: the next token is theirs."""

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs transformers, the extra [hf]: `make test-hf`")

import torch
from tests.support.decoders import QUIET, counted, decoder, logits, long_way, packed
from torch import nn

import waterfill
from waterfill.coding import native

pytestmark = pytest.mark.skipif(native.core is None, reason="needs the compiled core: `make native`")


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


@QUIET
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


@QUIET
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


@QUIET
@pytest.mark.parametrize("change", [another_norm, no_norm, no_inner_layers], ids=lambda change: change.__name__)
def test_a_layer_that_was_changed_before_can_be_packed(change: Callable[[Any], None]) -> None:
    model, other = decoder("Llama"), decoder("Llama")
    for one in (model, other):
        change(one.model.layers[0])
    made = waterfill.pack(waterfill.compress(model, spec="Quantize(bits=4)", price=1e-3), other)
    assert torch.isfinite(logits(made)).all()


@QUIET
def test_a_class_that_was_changed_runs_its_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed("Llama")
    monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", lambda self, x: torch.zeros_like(x))
    with counted(monkeypatch) as taken:
        logits(model)
    assert taken and not any(taken)
