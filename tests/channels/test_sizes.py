"""Pruned networks in files: their class gets the sizes back by itself, and nothing else does."""

import copy
from pathlib import Path

import pytest
import torch
from tests.support import prunable
from tests.support.small_networks import lively
from torch import nn

import waterfill
from waterfill import Options, Steps
from waterfill.channels import Pruning, shrink
from waterfill.errors import BadInput, CorruptFile, Mismatch

QUICK = Options(steps=Steps(stages=0, repair=False), threads=1)
CASES = {
    "separable": (prunable.Separable, prunable.pictures()),
    "transformer": (lambda: prunable.Transformer(heads="held"), prunable.texts()),
    "gru": (lambda: prunable.Recurrent(nn.GRU), prunable.texts()),
}


def output(model, inputs):
    with torch.no_grad():
        result = model.eval()(inputs)
    return result[0] if isinstance(result, tuple) else result


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """What builds the network, its inputs, and the pruned one."""
    build, inputs = CASES[request.param]
    torch.manual_seed(0)
    return build, inputs, waterfill.prune_channels(lively(build, inputs), inputs.split(12), macs=0.6, how=Pruning(1))


def test_a_file_goes_into_a_new_network_of_the_class(case, tmp_path):
    build, inputs, pruned = case
    small = waterfill.compress(pruned.model, lossless=True)
    small.save(tmp_path / "net.wf")
    net = waterfill.load(tmp_path / "net.wf").install(build())
    assert torch.equal(output(net, inputs), output(pruned.model, inputs))
    again = waterfill.load(tmp_path / "net.wf").install(net)  # which has the sizes already
    assert torch.equal(output(again, inputs), output(pruned.model, inputs))
    quick = waterfill.pack(tmp_path / "net.wf", build())
    torch.testing.assert_close(output(quick, inputs), output(pruned.model, inputs), rtol=1e-3, atol=1e-3)


def test_sizes_make_a_new_network_small(case):
    build, inputs, pruned = case
    net = shrink(build(), pruned.sizes)
    net.load_state_dict(pruned.model.state_dict())
    assert torch.equal(output(net, inputs), output(pruned.model, inputs))


def test_compressing_with_inputs_keeps_the_sizes():
    inputs = prunable.pictures(16)
    model = lively(prunable.Fire, inputs)
    pruned = waterfill.prune_channels(model, [inputs], macs=0.5, how=Pruning(1))
    small = waterfill.compress(pruned.model, [inputs], spec="Quantize()", price=1e-9, options=QUICK)
    assert small.notes["channels"] == pruned.sizes
    restored = small.install(prunable.Fire())
    torch.testing.assert_close(output(restored, inputs), output(pruned.model, inputs), rtol=0.05, atol=0.05)
    assert "channels" not in waterfill.compress(model, bits=8).notes


def test_other_networks_are_refused_and_stay_as_they_were(tmp_path: Path):
    inputs = prunable.pictures()
    pruned = waterfill.prune_channels(lively(prunable.Plain, inputs), [inputs], macs=0.7, how=Pruning(1))
    small = waterfill.compress(pruned.model, lossless=True)

    class Other(prunable.Plain):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(48, 7)

    with pytest.raises(Mismatch, match="no number '.heads' of 9 or more"):
        shrink(prunable.Transformer(heads="held"), {"attention": {".heads": 9}})
    for net in (Other(), nn.Linear(3, 4), shrink(prunable.Plain(), {"conv1": {"out": 1}, "conv2": {"in": 1}})):
        before = copy.deepcopy(net)
        for load in (small.install, lambda net: waterfill.pack(small, net)):
            with pytest.raises(Mismatch):
                load(net)
            assert {n: v.shape for n, v in net.state_dict().items()} == {
                n: v.shape for n, v in before.state_dict().items()
            }


@pytest.mark.parametrize("sizes", [3, {"conv1": 3}, {"conv1": {"out": -1}}, {"conv1": {"out": "8"}}, {3: {"out": 1}}])
def test_sizes_that_no_writer_wrote_are_refused(sizes):
    with pytest.raises(BadInput, match="no sizes of layers"):
        shrink(prunable.Plain(), sizes)
    small = waterfill.compress(prunable.Plain(), lossless=True)
    small.notes["channels"] = sizes
    with pytest.raises(CorruptFile, match="sizes of layers"):
        small.install(prunable.Plain())
