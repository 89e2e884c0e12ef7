"""Networks whose layers round their inputs to 8 bits: what they say, what is lost, and what stays as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.support.packed import close
from tests.support.rounded import Images, network, packed, pictures
from torch import Tensor, nn

import waterfill
from waterfill import runtime
from waterfill.errors import BadInput
from waterfill.runtime.int8 import kernel, quantize
from waterfill.runtime.layers.base import PackedLayer

NEEDS_KERNELS = pytest.mark.skipif(bool(kernel.missing()), reason=f"here they are not: {kernel.missing()}")
BATCHES = list(pictures(64).split(16))
NAMES = ["first", "grouped", "line", "hidden", "head"]


def forms(net: nn.Module) -> dict[str, str]:
    return {row["name"]: row["form"] for row in runtime.table(net)}


def whys(net: nn.Module) -> dict[str, str]:
    return {row["name"]: row["why"] for row in runtime.table(net)}


@NEEDS_KERNELS
@torch.no_grad()
def test_the_loss_in_the_table_is_that_of_the_inputs_held_out() -> None:
    before, net = packed(), runtime.quantize_activations(packed(), BATCHES, limit=1.0)
    assert all("8-bit inputs" in forms(net)[name] for name in NAMES)
    last = runtime.table(net)[-1]
    assert last["name"] == "whole network" and "5 of 5 layers" in last["form"]
    held = BATCHES[-1].split(1)  # alone: many at once are multiplied as floats where that is faster
    logs, wanted = (torch.cat([model(x) for x in held]).double().log_softmax(1) for model in (net, before))
    nats = float((wanted.exp() * (wanted - logs)).sum(1).mean())
    assert last["loss"] == pytest.approx(nats, rel=1e-2) and 0 < nats < 0.01
    x = pictures(32, seed=1)
    assert 0 < (net(x) - before(x)).norm() < 0.05 * before(x).norm()


@torch.no_grad()
def test_layers_go_back_until_the_loss_is_within_the_limit() -> None:
    whole = runtime.table(runtime.quantize_activations(packed(), BATCHES, limit=1.0))[-1]["loss"]
    net = runtime.quantize_activations(packed(), BATCHES, limit=whole / 2)
    back = [name for name in NAMES if "lose too much" in whys(net)[name]]
    assert runtime.table(net)[-1]["loss"] <= whole / 2
    assert 0 < len(back) < len(NAMES) and all("8-bit inputs" not in forms(net)[name] for name in back)
    none = runtime.quantize_activations(packed(), BATCHES, limit=1e-12)
    assert runtime.table(none)[-1]["loss"] == 0 and torch.equal(none(BATCHES[0]), packed()(BATCHES[0]))
    assert all("lose too much" in whys(none)[name] for name in NAMES)


@NEEDS_KERNELS
@torch.no_grad()
def test_inputs_beyond_what_calibration_saw_are_clipped_and_counted() -> None:
    net = runtime.quantize_activations(packed(), BATCHES, limit=1.0)
    usual, far = runtime.clipped(net, BATCHES), runtime.clipped(net, [10 * batch for batch in BATCHES])
    assert usual.keys() == far.keys() == {"first", "grouped", "line"}
    assert all(share < 0.01 for share in usual.values()) and far["first"] > 0.1
    x = torch.full((1, 3, 12, 12), 1e6)  # where all is clipped, twice as far makes no difference
    assert torch.equal(net.first(x), net.first(2 * x)) and not torch.equal(net.first(x), net.first(-x))
    assert runtime.clipped(net.first, [x, x / 1e9]) == {"": 0.5}


@torch.no_grad()
def test_without_kernels_convolutions_stay_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_RUNS", ("no_such_operator",))
    kernel.missing.cache_clear()
    kernel.operator.cache_clear()
    try:
        net = runtime.quantize_activations(packed(), BATCHES, limit=1.0)
    finally:
        kernel.missing.cache_clear()
        kernel.operator.cache_clear()
    assert "no int8 convolutions" in whys(net)["first"] and "8-bit inputs" not in forms(net)["first"]
    assert "8-bit inputs" in forms(net)["hidden"]
    assert runtime.clipped(net, BATCHES) == {}


@NEEDS_KERNELS
@torch.no_grad()
def test_the_slower_form_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_size(actions: dict[str, Callable[[], object]], *_: object) -> dict[str, float]:
        """Convolutions are faster with 8-bit inputs, and so is the network; linear layers are not."""
        made = actions["on"]()
        return {"on": 2.0 if isinstance(made, Tensor) and made.dim() == 2 else 1.0, "off": 1.5}

    monkeypatch.setattr(quantize, "shortest", by_size)
    net = runtime.quantize_activations(packed(), BATCHES, limit=1.0, batch=4)
    assert {name for name in NAMES if "8-bit inputs" in forms(net)[name]} == {"first", "grouped", "line"}
    assert whys(net)["hidden"].startswith("slower") and whys(net)["first"].startswith("faster")
    monkeypatch.setattr(quantize, "shortest", lambda *_: {"on": 1.0, "off": 1.0})
    same = runtime.quantize_activations(packed(), BATCHES, limit=1.0, batch=4)
    assert torch.equal(same(BATCHES[0]), packed()(BATCHES[0])) and runtime.table(same)[-1]["loss"] == 0


@torch.no_grad()
def test_one_at_a_time_for_a_batch_really_is_timed() -> None:
    net = runtime.quantize_activations(packed(), BATCHES, batch=1)
    assert all("µs" in why or "whole network" in why for name, why in whys(net).items() if name in NAMES)


@NEEDS_KERNELS
@torch.no_grad()
def test_a_network_that_is_not_packed() -> None:
    dense, net = network(), runtime.quantize_activations(network(), BATCHES, limit=1.0)
    assert all("8-bit inputs" in forms(net)[name] for name in NAMES) and net.again[0] is net.line
    x = pictures(8, seed=1)
    assert (net(x) - dense(x)).norm() < 0.05 * dense(x).norm()
    alone = runtime.quantize_activations(network().first, BATCHES, limit=1.0)
    assert isinstance(alone, PackedLayer) and close(alone(x), dense.first(x), 0.02)


@NEEDS_KERNELS
@torch.no_grad()
def test_codes_that_fit_stay_as_they_are() -> None:
    made = waterfill.compress(network(), spec="Quantize(bits=4)")
    net = waterfill.pack(made, Images())
    before = net.line.weight.clone()
    net = runtime.quantize_activations(net, BATCHES, limit=1.0)
    assert "again" not in forms(net)["line"] and torch.allclose(net.line.weight, before, rtol=1e-5)


class Odd(nn.Module):
    """Layers for which there is no kernel, one that takes its inputs by name, and one without any."""

    def __init__(self) -> None:
        super().__init__()
        self.even = nn.Conv2d(3, 32, 2, padding="same")
        self.turned = nn.ConvTranspose2d(32, 3, 2)
        self.named = nn.Conv2d(3, 3, 1)
        self.volume = nn.Conv3d(1, 2, 3)
        self.unused = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.named(input=self.turned(self.even(x)))
        return self.volume(x[:, None]).mean((2, 3, 4))


@NEEDS_KERNELS
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@torch.no_grad()
def test_layers_that_cannot_say_why() -> None:
    net = runtime.quantize_activations(Odd().eval(), BATCHES)
    assert whys(net).pop("whole network").startswith("divergence 0 nats")
    found = [whys(net)[name] for name in ("even", "turned", "named", "volume", "unused")]
    wanted = ["same at both ends", "transposed", "first argument", "two dimensions", "first argument"]
    assert all(part in why for part, why in zip(wanted, found, strict=True)), found
    assert "0 of 5 layers" in forms(net)["whole network"]


@torch.no_grad()
def test_inputs_of_linear_layers_are_rounded_while_the_loss_is_measured() -> None:
    """Many inputs are multiplied as floats, few as integers: the loss is that of few."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    x = torch.randn(512, 64)
    rounding = runtime.quantize_activations(waterfill.pack(waterfill.compress(net, bits=6), net), [x], logits=False)
    assert runtime.table(rounding)[-1]["loss"] > 1e-3
    assert {module.large for module in rounding.modules() if hasattr(module, "large")} == {0}


class Failing(Images):
    """Fails at a certain call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        if self.calls == 6:
            raise RuntimeError("no more")
        return super().forward(x)


def test_a_network_that_fails_on_the_way_stays_as_it_was() -> None:
    net = Failing().eval()
    with pytest.raises(BadInput, match="no more"):
        runtime.quantize_activations(net, BATCHES)
    assert type(net.first) is nn.Conv2d and type(net.hidden) is nn.Linear


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"limit": 0}, "no loss that may be"),
        ({"limit": True}, "no loss that may be"),
        ({"limit": float("nan")}, "no loss that may be"),
        ({"batch": 0}, "no number of inputs"),
        ({"batch": 1.5}, "no number of inputs"),
        ({"batches": []}, "two inputs at least"),
        ({"batches": [pictures(1)]}, "two inputs at least"),
        ({"batches": pictures(4)}, "sequence of inputs"),
        ({"batches": [pictures(4) * torch.nan]}, "NaN or infinite"),
        ({"batches": [torch.zeros(4, 5)]}, "do not fit"),
        ({"model": "net"}, "torch.nn.Module"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        runtime.quantize_activations(**({"model": packed(), "batches": BATCHES} | given))


def test_a_second_time_is_refused() -> None:
    net = runtime.quantize_activations(packed(), BATCHES)
    with pytest.raises(BadInput, match="already"):
        runtime.quantize_activations(net, BATCHES)
