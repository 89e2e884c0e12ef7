"""What packed networks refuse, what stays dense, and what looks on while they run."""

import copy
from pathlib import Path

import pytest
import torch
from tests.support.packable import TOKENS, Net
from torch import nn

import waterfill
from waterfill.errors import BadInput
from waterfill.runtime import table


@pytest.mark.parametrize("recipe", ["LowRank(rank=4)", "Codebook(levels=2)", "Prune(keep=0.1)", "Quantize()"])
@pytest.mark.filterwarnings("ignore:.*jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_embeddings_of_every_form_are_exported_and_traced(recipe: str) -> None:
    table_of = nn.Sequential(nn.Embedding(60, 128)).eval()
    packed = waterfill.pack(waterfill.compress(table_of, spec=recipe, price=1e-6), copy.deepcopy(table_of))
    given, other = torch.arange(6), torch.tensor([9, 8, 7, 30, 31, 1])
    program = torch.export.export(packed, (given,)).module()
    traced = torch.jit.trace(packed, given, check_trace=False)
    for run in (program, traced):
        assert torch.allclose(run(other), packed(other), atol=1e-5)


def test_gradients_are_refused_and_not_dropped(packed_file: Path) -> None:
    packed = waterfill.pack(packed_file, Net())
    assert not any(value.requires_grad for value in packed.parameters())
    assert not packed(TOKENS).requires_grad  # outside of torch.no_grad too
    with pytest.raises(BadInput, match="no gradients"):
        packed.up(torch.ones(2, 64, requires_grad=True))


def test_layers_that_do_more_than_multiply_stay() -> None:
    class Named(nn.Linear):
        pass

    def build(change: str) -> nn.Module:
        net = nn.Sequential(Named(64, 64) if change == "class" else nn.Linear(64, 64))
        if change == "hook":
            net[0].register_forward_hook(lambda module, given, made: 2 * made)
        if change == "forward":
            own = net[0].forward
            net[0].forward = lambda x: 3 * own(x)
        if change == "norm":
            nn.utils.spectral_norm(net[0])
        return net.eval()

    x = torch.randn(3, 64)
    for change in ("class", "hook", "forward", "norm"):
        made = waterfill.compress(build(change), spec="Quantize()", price=1e-5)
        packed, dense = waterfill.pack(made, build(change)), made.install(build(change)).eval()
        assert table(packed)[0]["runs"] == "dense"
        assert torch.allclose(packed(x), dense(x), atol=1e-5)


def test_the_state_of_another_packing_is_refused() -> None:
    def packed(bits: int, cols: int = 30) -> nn.Module:
        net = nn.Sequential(nn.Linear(cols, 40)).eval()
        recipe = f"Quantize(bits={bits}, group=128)"
        return waterfill.pack(waterfill.compress(net, spec=recipe), nn.Sequential(nn.Linear(cols, 40)))

    with pytest.raises((BadInput, RuntimeError), match="bits, group, columns"):
        packed(4).load_state_dict(packed(2).state_dict())
    one, other, x = packed(4), packed(4), torch.randn(2, 30)
    odd = {name: value.T.contiguous().T for name, value in other.state_dict().items() if value.ndim == 2}
    odd |= {name: value.double() for name, value in odd.items() if "scales" in name}
    one.load_state_dict(other.state_dict() | odd, assign=True)
    assert torch.equal(one(x), other(x))


def test_damaged_entries_are_refused() -> None:
    net = nn.Sequential(nn.Linear(64, 40)).eval()
    packed = waterfill.pack(waterfill.compress(net, spec="Prune(keep=0.1)", price=1e-5), copy.deepcopy(net))
    for name, value in (("where", 64), ("starts", 1 << 40)):
        state = packed.state_dict()
        state[f"0.term.{name}"] = torch.full_like(state[f"0.term.{name}"], value)
        with pytest.raises((BadInput, RuntimeError), match="damaged"):
            packed.load_state_dict(state)


def test_codes_that_many_corrections_would_follow_stay_dense() -> None:
    net = nn.Sequential(nn.Linear(256, 256)).eval()
    packed = waterfill.pack(waterfill.compress(net, bits=12), copy.deepcopy(net))
    (row,) = table(packed)
    assert row["runs"] == "dense" and "no smaller" in row["why"]


@torch.no_grad()
def test_a_damaged_file_leaves_the_module_as_it_was(packed_file: Path, tmp_path: Path) -> None:
    data = bytearray(packed_file.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    (tmp_path / "bad.wf").write_bytes(data)
    net = Net()
    with pytest.raises(waterfill.WaterfillError):
        waterfill.pack(tmp_path / "bad.wf", net)
    assert all(row["runs"] == "dense" for row in table(net))
    waterfill.pack(packed_file, net)


@torch.no_grad()
def test_dispatch_modes_see_the_products(packed_file: Path) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    packed, x = waterfill.pack(packed_file, Net()), torch.randn(3, 64)
    graph = make_fx(packed.up)(x)
    assert "codes_product" in graph.code
    assert torch.equal(graph(2 * x), packed.up(2 * x))


@pytest.mark.parametrize("given", [(Net, {}), ({}, {}), (None, {}), ("file", {"batch": 0}), ("file", {"batch": True})])
def test_arguments_that_make_no_sense(packed_file: Path, given: tuple[object, dict[str, object]]) -> None:
    first, extra = given
    with pytest.raises(BadInput):
        waterfill.pack(packed_file if first == "file" else first, Net(), **extra)
    with pytest.raises(BadInput, match="the class Net"):
        waterfill.pack(packed_file, Net)
    packed = waterfill.pack(packed_file, Net())
    with pytest.raises(BadInput, match="packed already"):
        waterfill.pack(packed_file, packed)


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@torch.no_grad()
def test_a_padding_mask_goes_through_packed_transformer_layers() -> None:
    def build() -> nn.Module:
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 1)

    made = waterfill.compress(build().eval(), spec="Quantize()", price=1e-6)
    packed, dense, x = waterfill.pack(made, build()), made.install(build()).eval(), torch.randn(2, 5, 64)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 3:] = True
    found, wanted = (net(x, src_key_padding_mask=mask) for net in (packed, dense))
    assert (found - wanted)[~mask].norm() < 1e-3 * wanted[~mask].norm()
