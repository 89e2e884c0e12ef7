"""Networks with 8-bit inputs are copied, saved, compiled and exported, and run on other devices."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.support.packed import close
from tests.support.rounded import packed, pictures
from torch import nn

from waterfill import runtime
from waterfill.errors import BadInput
from waterfill.runtime.int8 import kernel

pytestmark = pytest.mark.skipif(bool(kernel.missing()), reason=f"here they are not: {kernel.missing()}")
X = pictures(4, seed=1)


@pytest.fixture(scope="module")
def net() -> Iterator[nn.Module]:
    made = runtime.quantize_activations(packed(), pictures(64).split(16), limit=1.0)
    with torch.no_grad():
        yield made


def test_the_state_is_plain_tensors(net: nn.Module) -> None:
    other = runtime.quantize_activations(packed(), pictures(64).split(16), limit=1.0)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    for value in other.state_dict().values():
        value.zero_()
    other.load_state_dict(state)
    assert torch.equal(other(X), net(X))
    state["first.term.unit"] = torch.tensor([0.0, 300.0])
    with pytest.raises(BadInput, match="damaged"):
        other.load_state_dict(state)


def test_copies_say_the_same_and_know_what_they_lose(net: nn.Module) -> None:
    net(X)  # which has made what cannot be copied
    other = copy.deepcopy(net)
    assert torch.equal(other(X), net(X)) and runtime.table(other) == runtime.table(net)
    with pytest.raises(BadInput, match="does not learn"):
        other.train()


def test_exported_layers_say_the_same(net: nn.Module, tmp_path: Path) -> None:
    rows = torch.export.Dim("rows", min=1, max=64)
    program = torch.export.export(net.first, (X,), dynamic_shapes=({0: rows},))
    torch.export.save(program, tmp_path / "net.pt2")
    again = torch.export.load(tmp_path / "net.pt2").module()
    assert torch.equal(again(X), net.first(X)) and torch.equal(again(X[:1]), net.first(X[:1]))


def test_compiled_layers_say_the_same(net: nn.Module) -> None:
    compiled = torch.compile(net.first, backend="aot_eager", fullgraph=True)
    assert close(compiled(X), net.first(X), 1e-5)


@pytest.mark.skipif(not hasattr(torch.library, "register_vmap"), reason="operators know vmap from PyTorch 2.5 on")
def test_vmap(net: nn.Module) -> None:
    assert close(torch.vmap(net)(X[:, None])[:, 0], net(X), 1e-4)
    x = torch.rand(2, 5, 32, 9)
    found = torch.vmap(net.line, in_dims=1, out_dims=1)(x)
    assert all(close(found[:, i], net.line(x[:, i]), 1e-5) for i in range(5))


def test_other_devices_multiply_the_same_integers(net: nn.Module) -> None:
    layer = net.first
    assert close(kernel.by_floats(X, _kernels(layer), layer.bias, layer._geometry), layer(X), 1e-5)
    assert copy.deepcopy(net).to("meta").first(X.to("meta")).shape == (4, 32, 12, 12)


def _kernels(layer: nn.Module) -> kernel.Kernels:
    term = layer.term
    return kernel.Kernels(term.codes, term.scales, term.channels, term.unit)


def test_scales_keep_their_type_and_outputs_that_of_the_inputs(net: nn.Module) -> None:
    half = copy.deepcopy(net).bfloat16()
    assert half.first.term.scales.dtype == torch.float32 and half(X.bfloat16()).dtype == torch.bfloat16
    assert close(half(X.bfloat16()).float(), net(X), 0.05)


def test_orders_in_memory_and_inputs_without_a_batch(net: nn.Module) -> None:
    last = X.contiguous(memory_format=torch.channels_last)
    assert torch.equal(net.first(last), net.first(X)) and torch.equal(net.first(X[0]), net.first(X)[0])
    assert net.first(last).is_contiguous(memory_format=torch.channels_last)
    assert net.line(torch.randn(32, 9)).shape == (32, 9) and net.line(torch.randn(2, 9, 32).mT).is_contiguous()


def test_bytes_in_memory_count_the_order_of_the_kernel(net: nn.Module) -> None:
    row = next(row for row in runtime.table(net) if row["name"] == "first")
    assert row["bytes"] == 2 * 32 * 27 + 4 * (32 + 3 + 2)
