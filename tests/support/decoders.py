"""A small packed decoder of transformers, one token at a time, by the short way and by its forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from tests.support.hf_models import VOCABULARY
from torch import Tensor, nn

import waterfill
from waterfill.runtime.decoder import token

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


QUIET = pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
