"""Stacked experts block by block: each has the costs of the tokens that it is given."""

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs transformers, the extra [hf]: `make test-hf`")

from tests.support.hf_models import VOCABULARY, build
from torch import Tensor, nn

import waterfill
from waterfill import Options
from waterfill.network.running.forward import hooked


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    found: Tensor = model(tokens, use_cache=False).logits
    return found


def test_experts_that_more_tokens_are_given_to_are_kept_better() -> None:
    model = build("Mixtral")
    model.set_experts_implementation("eager")  # one expert after the other, each with inputs of its own
    router = model.model.layers[0].mlp.gate
    with torch.no_grad():
        router.weight[2:] *= 0.01  # these only where both others are unlikely
        router.weight[:2] *= 50
    batches = list(torch.randint(0, VOCABULARY, (8, 32), generator=torch.Generator().manual_seed(3)).split(1))
    given = torch.zeros(4, dtype=torch.int64)

    def count(_: str, module: nn.Module, inputs: tuple[Tensor, ...], __: object) -> None:
        given.add_(torch.bincount((inputs[0].reshape(-1, 64) @ module.weight.T).topk(2).indices.flatten(), minlength=4))

    with torch.no_grad(), hooked({"router": router}, count):
        for batch in batches:
            logits(model, batch)
    often, seldom = int(given.argmax()), int(given.argmin())
    assert given[often] > 1.5 * given[seldom]
    how = Options(blocks="model.layers", threads=1)
    made = waterfill.compress(model, batches, spec="Quantize()", price=1e-7, forward=logits, options=how)
    assert not [row for row in made.table() if "experts" in row["name"] and row["warning"]]
    for name in ("gate_up_proj", "down_proj"):
        key = f"model.layers.0.mlp.experts.{name}"
        gaps = (made.state_dict()[key] - model.state_dict()[key]).flatten(1).norm(dim=1)
        assert gaps[often] < 0.97 * gaps[seldom]
