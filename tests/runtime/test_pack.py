"""Networks that run from compressed weights say what the restored ones say."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.packable import TOKENS, Net
from torch import Tensor, nn

import waterfill
from waterfill.errors import BadInput, Mismatch
from waterfill.importance import Importance
from waterfill.recipe import parse
from waterfill.runtime import table

RECIPES = [
    "Quantize()",
    "Quantize(states=8)",
    "Quantize(bits=4, group=64)",
    "Quantize(bits=3, group=128, symmetric=False)",
    "Quantize(bits=6)",
    "Codebook(levels=2)",
    "Codebook(values='binary')",
    "Codebook(values='ternary')",
    "Codebook(values='powers')",
    "Codebook(levels=6)",
    "Prune(keep=0.1)",
    "Prune(pattern='2:4')",
    "Prune(keep=0.3, pattern='columns')",
    "Prune(keep=0.5, pattern='rows')",
    "LowRank(rank=5)",
    "LowRank(rank=0)",
    "Codebook(values='ternary') + Prune(keep=0.02)",
    "LowRank(rank=3) + Codebook(values='binary') + Prune(keep=0.01)",
    "Sampled()",
    "Dense()",
]
KERNELS = {  # what of these runs packed, and in which form
    "Quantize()": "bit codes",
    "Codebook(values='ternary')": "2-bit codes",
    "Prune(keep=0.1)": "entries",
    "Prune(keep=0.3, pattern='columns')": "columns",
    "Codebook(values='ternary') + Prune(keep=0.02)": " + ",
}


@pytest.mark.parametrize("recipe", RECIPES)
@torch.no_grad()
def test_packed_networks_say_what_restored_ones_say(net: nn.Module, recipe: str, tmp_path: Path) -> None:
    budget = {} if parse(recipe).fixed_rate else {"price": 1e-6}
    made = waterfill.compress(net, spec=recipe, **budget)
    dense, packed = made.install(Net()).eval(), waterfill.pack(made, Net())
    wanted = dense(TOKENS)
    assert (packed(TOKENS) - wanted).norm() <= 1e-3 * wanted.norm()
    assert torch.allclose(packed.embedding(TOKENS), dense.embedding(TOKENS), rtol=1e-6, atol=1e-7)
    made.save(tmp_path / "net.wf")
    assert torch.equal(waterfill.pack(tmp_path / "net.wf", Net())(TOKENS), packed(TOKENS))
    rows = {row["name"]: row for row in table(packed)}
    if recipe in KERNELS:
        assert all(rows[name]["runs"] == "packed" for name in ("embedding", "up", "head", "conv"))
        assert KERNELS[recipe] in rows["up"]["form"]
    assert all(row["why"] for row in rows.values() if row["runs"] == "dense")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_product_of_a_part_is_its_matrix(recipe: str) -> None:
    target = torch.randn(70, 128, generator=torch.Generator().manual_seed(1))
    part = parse(recipe).fit(target, Importance(), 1e-3)
    matrix = part.product().matrix()
    assert torch.allclose(matrix, part.dense(), rtol=1e-5, atol=1e-6)
    assert torch.allclose(part.product().transposed().matrix(), matrix.T, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_bits_of_input_are_a_choice_of_error(net: nn.Module) -> None:
    made = waterfill.compress(net, spec="Quantize()", price=1e-6)
    wanted = made.install(Net()).eval()(TOKENS)
    found = {n: waterfill.pack(made, Net(), input_bits=n, large=1000)(TOKENS) for n in (24, 16, 8)}
    errors = {n: float((outputs - wanted).norm() / wanted.norm()) for n, outputs in found.items()}
    assert errors[24] < 1e-6 and 10 * errors[24] < errors[16] and 10 * errors[16] < errors[8] < 0.05
    with pytest.raises(BadInput, match="input_bits=12"):
        waterfill.pack(made, Net(), input_bits=12)


@torch.no_grad()
def test_a_packed_network_is_smaller_in_memory_and_holds_plain_tensors(packed_file: Path, tmp_path: Path) -> None:
    packed = waterfill.pack(packed_file, Net())
    rows = [row for row in table(packed) if row["runs"] == "packed"]
    assert sum(row["bytes"] for row in rows) < 4 * (90 * 64 + 2 * 64 * 150 + 3 * 64 * 64) / 4
    assert {row["name"]: row["bytes"] for row in rows}["head"] == 0  # whose weight is that of the embedding
    wanted = packed(TOKENS)
    state = {name: value.clone() for name, value in packed.state_dict().items()}
    save_file(state, tmp_path / "packed.safetensors")
    other = waterfill.pack(packed_file, Net())
    for value in other.state_dict().values():
        value.zero_()
    other.load_state_dict(load_file(tmp_path / "packed.safetensors"))
    assert torch.equal(other(TOKENS), wanted)
    assert torch.equal(copy.deepcopy(packed)(TOKENS), wanted)


@torch.no_grad()
def test_scales_keep_their_type_when_a_network_is_converted(packed_file: Path) -> None:
    packed = waterfill.pack(packed_file, Net())
    wanted = packed(TOKENS)
    half = copy.deepcopy(packed).bfloat16()
    assert {v.dtype for name, v in half.up.state_dict().items() if "scales" in name} == {torch.float32}
    assert half.up.bias.dtype == torch.bfloat16
    found = half(TOKENS)
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).norm() < 0.05 * wanted.norm()


@torch.no_grad()
def test_modules_on_the_meta_device_get_memory(packed_file: Path) -> None:
    with torch.device("meta"):
        empty = Net()
    assert torch.equal(waterfill.pack(packed_file, empty)(TOKENS), waterfill.pack(packed_file, Net())(TOKENS))


@torch.no_grad()
def test_packed_networks_are_exported(packed_file: Path) -> None:
    packed = waterfill.pack(packed_file, Net())
    program = torch.export.export(packed, (TOKENS,))
    assert any("codes_product" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(TOKENS), packed(TOKENS))


@torch.no_grad()
def test_packed_networks_are_compiled_whole(packed_file: Path) -> None:
    packed = waterfill.pack(packed_file, Net())
    compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(TOKENS), packed(TOKENS), atol=1e-5)


def test_a_packed_network_does_not_learn(packed_file: Path) -> None:
    packed = waterfill.pack(packed_file, Net())
    assert not packed.training and packed.eval() is packed
    with pytest.raises(BadInput, match="does not learn"):
        packed.train()


def test_what_does_not_fit_is_refused_and_nothing_is_changed(packed_file: Path) -> None:
    other = nn.Sequential(nn.Linear(64, 90))
    with pytest.raises(Mismatch, match="shapes differ|lacks"):
        waterfill.pack(packed_file, other)
    assert type(other[0]) is nn.Linear


@torch.no_grad()
def test_a_network_that_is_one_layer(tmp_path: Path) -> None:
    made = waterfill.compress(nn.Linear(64, 40), spec="Quantize()", bits=4)
    packed = waterfill.pack(made, nn.Linear(64, 40))
    x = torch.randn(5, 64)
    assert torch.allclose(packed(x), made.install(nn.Linear(64, 40))(x), atol=1e-4)


@torch.no_grad()
def test_layers_with_a_forward_of_their_own_stay(net: nn.Module) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    made = waterfill.compress(nn.Sequential(Doubled(64, 64)), spec="Quantize()", bits=4)
    packed = waterfill.pack(made, nn.Sequential(Doubled(64, 64)))
    assert type(packed[0]) is Doubled and table(packed)[0]["runs"] == "dense"


@torch.no_grad()
def test_the_faster_form_of_a_layer_is_kept_for_a_batch(packed_file: Path) -> None:
    packed = waterfill.pack(packed_file, Net(), batch=1)
    rows = [row for row in table(packed) if row["name"] in ("up", "down")]
    assert all("µs packed" in row["why"] and "µs dense" in row["why"] for row in rows)
    wanted = waterfill.load(packed_file).install(Net()).eval()(TOKENS)
    assert (packed(TOKENS) - wanted).norm() < 1e-3 * wanted.norm()


def test_tokens_that_do_not_exist_are_refused(packed_file: Path) -> None:
    packed = waterfill.pack(packed_file, Net())
    for token in (-1, 90):
        with pytest.raises(BadInput, match="0 to 89"):
            packed.embedding(torch.tensor([token]))


@torch.no_grad()
def test_transformer_layers_of_pytorch_multiply_from_packed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)

    def build() -> nn.Module:
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2)

    made = waterfill.compress(build().eval(), spec="Quantize()", price=1e-6)
    packed, x = waterfill.pack(made, build()), torch.randn(2, 5, 64)
    runs = {row["name"]: row["runs"] for row in table(packed)}
    assert runs["layers.0.linear1"] == "packed" and runs["layers.0.self_attn.out_proj"] == "dense"
    wanted = made.install(build()).eval()(x)
    monkeypatch.setattr(type(packed.layers[0].linear1), "weight", property(lambda self: pytest.fail("restored")))
    assert (packed(x) - wanted).norm() < 1e-3 * wanted.norm()


@pytest.mark.filterwarnings("ignore:the module holds bfloat16")
def test_the_weight_of_a_packed_layer_is_that_of_the_layer_before(packed_file: Path) -> None:
    dense = waterfill.load(packed_file).install(Net().bfloat16())
    packed = waterfill.pack(packed_file, Net().bfloat16())
    for name in ("embedding", "up", "down"):
        found, wanted = packed.get_submodule(name).weight, dense.get_submodule(name).weight
        assert found.dtype == wanted.dtype and torch.equal(found, wanted)


def test_the_table_says_what_attention_of_pytorch_keeps_dense() -> None:
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    net = waterfill.pack(waterfill.compress(model, bits=6), model)
    rows = {row["name"]: row for row in waterfill.runtime.table(net)}
    for name in ("self_attn.in_proj_weight", "self_attn.out_proj"):
        assert rows[name]["runs"] == "dense" and "MultiheadAttention" in rows[name]["why"]
    assert rows["linear1"]["runs"] == "packed"
