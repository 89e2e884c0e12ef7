"""A packed language model under `torch.compile`, token by token with a static cache."""

import pytest

transformers = pytest.importorskip("transformers", reason="needs transformers, the extra [hf]: `make test-hf`")

import torch
from tests.support.hf_models import VOCABULARY, build
from torch import nn

import waterfill


def logits(model: nn.Module, step: object, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Of a prompt of four tokens, and of three more, one at a time."""
    cache = transformers.StaticCache(config=model.config, max_cache_len=8)
    with torch.no_grad():
        found = [model(tokens[:, :4], past_key_values=cache, use_cache=True).logits]
        for at in range(4, 7):
            given = {"input_ids": tokens[:, at : at + 1], "position_ids": torch.tensor([[at]])}
            found.append(step(**given, past_key_values=cache, use_cache=True).logits)
    return found


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")  # its new name is not in 5.0
def test_a_compiled_step_says_what_the_plain_one_says() -> None:
    compressed = waterfill.compress(
        build("Llama"), spec="Quantize(bits=4) + LowRank(rank=8) + Prune(keep=0.02)", price=1e-3
    )
    packed = waterfill.pack(compressed, build("Llama"))
    tokens = torch.randint(0, VOCABULARY, (1, 7), generator=torch.Generator().manual_seed(0))
    plain = logits(packed, packed, tokens)
    compiled = logits(packed, torch.compile(packed, backend="aot_eager", fullgraph=True), tokens)
    for mine, wanted in zip(compiled, plain, strict=True):
        assert torch.allclose(mine, wanted, atol=1e-3)
    whole = packed(tokens).logits[0, 3:]
    assert torch.allclose(torch.cat([found[0, -1:] for found in compiled]), whole, atol=1e-3)
