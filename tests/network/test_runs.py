"""How a network is run: without shortcuts that hide its calls, and with a graph where PyTorch would make none."""

import math

import pytest
import torch
import torch.utils.checkpoint as checkpoints
from torch import Tensor, nn

import waterfill
from waterfill.errors import BadInput
from waterfill.network.running.forward import as_deployed, call
from waterfill.network.running.plainly import plainly

X = torch.randn(48, 16, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    """Two layers; `way` says how the first is run."""

    def __init__(self, way: str = "plainly") -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.first, self.second = nn.Linear(16, 64), nn.Linear(64, 5)
        self.way = way

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if self.way == "reentrant":
            hidden = checkpoints.checkpoint(self.first, x, use_reentrant=True)
        elif self.way == "inference mode":
            with torch.inference_mode():
                hidden = self.first(x)
        else:
            hidden = self.first(x)
        outputs = self.second(torch.relu(hidden))
        if self.way == "never":
            outputs = outputs.masked_fill(torch.arange(5) > 2, -math.inf)
        return outputs if labels is None else (nn.functional.cross_entropy(outputs, labels), outputs)


@pytest.mark.parametrize("way", ["reentrant", "inference mode"])
def test_parts_without_a_graph_cost_what_they_cost_with_one(way) -> None:
    function, enter = checkpoints.CheckpointFunction, torch.inference_mode.__enter__
    found, wanted = (waterfill.calibrate(Two(w), X.split(16)) for w in (way, "plainly"))
    assert not found.unreached and torch.equal(found["first.weight"].rows, wanted["first.weight"].rows)
    assert checkpoints.CheckpointFunction is function and torch.inference_mode.__enter__ is enter
    assert waterfill.compress(Two(way), list(X.split(16)), spec="Quantize()", bits=8).bits <= 8


def test_inference_mode_around_the_call_and_off_inside_it() -> None:
    model, batches = Two(), list(X.split(16))
    with torch.inference_mode():
        found, small = (
            waterfill.calibrate(model, batches),
            waterfill.compress(model, batches, spec="Quantize()", price=1e-6),
        )
    assert torch.equal(found["first.weight"].gram, waterfill.calibrate(model, batches)["first.weight"].gram)
    assert small.manifest == waterfill.compress(model, batches, spec="Quantize()", price=1e-6).manifest
    with plainly(), torch.inference_mode():
        assert not torch.is_inference_mode_enabled()
    with torch.inference_mode():
        assert torch.is_inference_mode_enabled()


def test_the_fast_path_of_attention_is_off_while_a_network_is_watched() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        model = Padded(nn.TransformerEncoder(layer, 1)).eval()
    tokens = torch.randint(1, 20, (12, 6), generator=torch.Generator().manual_seed(2))
    tokens[:, 4:] = 0
    made = waterfill.compress(model, list(tokens.split(4)), spec="Quantize()", price=1e-6)
    small = made.install(Padded(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)))
    found = waterfill.evaluate(small, [tokens], reference=model, layers=True)
    assert found.output_error < 0.1 and "encoder.layers.0.norm1" in found.layers
    assert torch.backends.mha.get_fastpath_enabled()


class Padded(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.embedding, self.encoder, self.head = nn.Embedding(20, 16), encoder, nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens), src_key_padding_mask=tokens == 0))


def test_a_loss_that_stands_before_the_outputs_is_not_the_outputs() -> None:
    labels = torch.arange(48) % 5
    pairs = list(zip(X.split(16), labels.split(16), strict=True))
    found, wanted = waterfill.calibrate(Two(), pairs), waterfill.calibrate(Two(), X.split(16))
    assert all(torch.equal(found[name].rows, wanted[name].rows) for name in wanted)
    with as_deployed(model := Two()):
        assert torch.equal(call(model, X, lambda m, b: {"loss": m(b).sum()}), model(X).sum())


def test_outputs_that_never_are_count_nothing() -> None:
    model, batches = Two("never").eval(), list(X.split(16))
    shorter = Two().eval()
    found = waterfill.calibrate(model, batches)
    wanted = waterfill.calibrate(shorter, batches, forward=lambda m, b: m(b)[:, :3])
    assert torch.allclose(found["first.weight"].gram, wanted["first.weight"].gram, rtol=0.3, atol=0.3)
    assert found.unit == pytest.approx(wanted.unit)
    small = waterfill.compress(model, batches, spec="Quantize()", price=1e-6).install(Two("never")).eval()
    told = waterfill.evaluate(small, batches, reference=model)
    cut = waterfill.evaluate(small, batches, reference=model, forward=lambda m, b: m(b)[:, :3])
    assert told.output_error == pytest.approx(cut.output_error) and 0 < told.output_error < 0.1
    assert told.divergence == pytest.approx(cut.divergence) and told.divergence > 0
    for bad in (math.nan, math.inf):
        with pytest.raises(BadInput, match="NaN or infinite"):
            waterfill.evaluate(model, batches, forward=lambda m, b, bad=bad: m(b) + bad)
    late = waterfill.evaluate(model, batches, reference=shorter)
    assert late.output_error == math.inf and late.divergence == math.inf
