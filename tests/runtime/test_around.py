"""What users and libraries do with packed networks, around their layers."""

import copy
from pathlib import Path

import pytest
import torch
from tests.support.packable import TOKENS, Net
from tests.support.packed import close
from torch import Tensor, nn

import waterfill
from waterfill.errors import BadInput
from waterfill.runtime import table


class Mixed(nn.Module):
    """Convolutions and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(24, 48, 3, padding=1, stride=2)
        self.up = nn.ConvTranspose1d(48, 40, 4)
        self.lstm = nn.LSTM(40, 48, 2, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(self.up(self.conv(x).relu()).mT)
        return self.head(y)


@pytest.fixture(scope="module")
def mixed() -> waterfill.CompressedModel:
    torch.manual_seed(0)
    return waterfill.compress(Mixed().eval(), spec="Quantize()", price=1e-6)


@torch.no_grad()
def test_convolutions_and_recurrent_layers_in_a_network(mixed: waterfill.CompressedModel) -> None:
    packed, x = waterfill.pack(mixed, Mixed()), torch.randn(2, 24, 12)
    rows = table(packed)
    assert [(row["name"], row["runs"]) for row in rows] == [(n, "packed") for n in ("conv", "up", "lstm", "head")]
    assert sum(row["bytes"] for row in rows) < 4 * mixed.weights / 2.5
    dense = mixed.install(Mixed()).eval()
    assert close(packed(x), dense(x), 1e-4)
    other = waterfill.pack(mixed, Mixed())
    for value in other.state_dict().values():
        value.zero_()
    other.load_state_dict(packed.state_dict())
    assert torch.equal(other(x), packed(x)) and torch.equal(copy.deepcopy(packed)(x), packed(x))
    half = copy.deepcopy(packed).bfloat16()
    assert half.conv.bias.dtype == torch.bfloat16 and half.conv.term.scales.dtype == torch.float32
    found = half(x.bfloat16())
    assert found.dtype == torch.bfloat16 and close(found, packed(x), 0.05)
    assert not any(value.requires_grad for value in packed.parameters())


@torch.no_grad()
def test_convolutions_and_recurrent_layers_are_compiled_and_exported(mixed: waterfill.CompressedModel) -> None:
    packed, x = waterfill.pack(mixed, Mixed()), torch.randn(2, 24, 2)
    program = torch.export.export(packed, (x,))
    assert any("codes_block" in str(node.target) for node in program.graph.nodes)
    compiled = torch.compile(packed.conv, backend="aot_eager", fullgraph=True)
    assert close(program.module()(x), packed(x), 1e-5) and close(compiled(x), packed.conv(x), 1e-5)


def test_training_is_refused_before_anything_has_changed(packed_file: Path) -> None:
    packed = waterfill.pack(packed_file, Net())
    for net in (packed, copy.deepcopy(packed), packed.again):
        with pytest.raises(BadInput, match="does not learn"):
            net.train()
        assert not any(module.training for module in net.modules())
        assert net.eval() is net
    assert copy.deepcopy(packed).eval() is not packed


@torch.no_grad()
def test_autocast_gives_its_own_type(packed_file: Path, mixed: waterfill.CompressedModel) -> None:
    packed, x = waterfill.pack(packed_file, Net()), torch.randn(3, 64)
    wanted = packed.up(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = packed.up(x)
        convolved = waterfill.pack(mixed, Mixed()).conv(torch.randn(2, 24, 9))
    assert found.dtype == convolved.dtype == torch.bfloat16
    assert close(found, wanted, 0.02) and packed.up(x).dtype == torch.float32


@pytest.mark.skipif(not hasattr(torch.library, "register_vmap"), reason="operators know vmap from PyTorch 2.5 on")
@pytest.mark.parametrize("recipe", ["Quantize()", "Codebook(levels=6)", "Prune(keep=0.1)"])
@torch.no_grad()
def test_vmap(net: nn.Module, recipe: str) -> None:
    packed = waterfill.pack(waterfill.compress(net, spec=recipe, price=1e-6), Net())
    assert close(torch.vmap(packed)(TOKENS[:, None])[:, 0], packed(TOKENS), 1e-5)
    x = torch.randn(64, 3)
    assert close(torch.vmap(packed.up, in_dims=1)(x), packed.up(x.T), 1e-6)
    assert torch.equal(torch.vmap(packed.embedding)(TOKENS), packed.embedding(TOKENS))


class Pretrained(nn.Module):
    """The methods of transformers' networks that read weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Embedding(60, 64)
        self.head = nn.Linear(64, 60, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        self.head.weight = self.body.weight

    def save_pretrained(self, folder: str) -> None:
        raise AssertionError("which would write what nothing reads")

    def resize_token_embeddings(self, count: int) -> None:
        raise AssertionError("which would read the weights")


def test_methods_that_read_weights_are_refused_with_what_to_do() -> None:
    packed = waterfill.pack(waterfill.compress(Pretrained(), spec="Quantize()", bits=4), Pretrained())
    packed.tie_weights()
    assert packed.body.term is packed.head.term
    for net in (packed, copy.deepcopy(packed)):
        with pytest.raises(BadInput, match=r"keep the \.wf file"):
            net.save_pretrained("folder")
        with pytest.raises(BadInput, match="resize the embeddings first"):
            net.resize_token_embeddings(70)
    Pretrained().tie_weights()  # other networks of the class are as they were
