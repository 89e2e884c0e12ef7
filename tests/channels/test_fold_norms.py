"""Norms that went into the layers before them: the same function with fewer modules, in files of the same class."""

import copy

import pytest
import torch
from tests.support import prunable
from tests.support.small_networks import Normed, lively
from torch import nn

import waterfill
from waterfill.channels import Pruning, fold_norms, shrink
from waterfill.errors import BadInput, Mismatch
from waterfill.network.channels.sizes import noted_sizes


def output(model, inputs):
    with torch.no_grad():
        return model.eval()(inputs)


def norms(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("build", [Normed, prunable.Residual])
def test_the_function_stays_and_the_norms_go(build):
    inputs = prunable.pictures()
    model = lively(build, inputs)
    before = copy.deepcopy(model.state_dict())
    folded = fold_norms(model, inputs[:8])
    assert norms(model)
    assert not norms(folded)
    torch.testing.assert_close(output(folded, inputs), output(model, inputs), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_norm_whose_layer_feeds_others_stays():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return (self.norm(y) + y).mean((2, 3))

    inputs = prunable.pictures(8)
    model = lively(Shared, inputs)
    folded = fold_norms(model, inputs)
    assert norms(folded) == ["norm"]
    torch.testing.assert_close(output(folded, inputs), output(model, inputs))


def test_a_norm_that_code_asks_for_something_stays():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.norm1 = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
            self.conv2, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.norm2(self.conv2(self.norm1(self.conv1(x))))
            return x.mean((2, 3)) / self.norm1.num_features

    inputs = prunable.pictures(8)
    model = lively(Asking, inputs)
    folded = fold_norms(model, inputs)
    assert norms(folded) == ["norm1"]
    torch.testing.assert_close(output(folded, inputs), output(model, inputs), rtol=1e-4, atol=1e-5)


def test_a_file_takes_the_norms_out_of_a_new_network(tmp_path):
    inputs = prunable.pictures()
    pruned = waterfill.prune_channels(
        lively(prunable.Residual, inputs), inputs.split(16), macs=0.7, how=Pruning(rounds=1)
    )
    folded = fold_norms(pruned.model, inputs[:8])
    torch.testing.assert_close(output(folded, inputs), output(pruned.model, inputs), rtol=1e-4, atol=1e-4)
    waterfill.compress(folded, lossless=True).save(tmp_path / "net.wf")
    net = waterfill.load(tmp_path / "net.wf").install(prunable.Residual())
    assert not norms(net)
    assert torch.equal(output(net, inputs), output(folded, inputs))
    again = waterfill.load(tmp_path / "net.wf").install(net)
    assert torch.equal(output(again, inputs), output(folded, inputs))


def test_sizes_take_norms_out_and_other_modules_are_refused():
    inputs = prunable.pictures(8)
    folded = fold_norms(lively(prunable.Residual, inputs), inputs)
    sizes = noted_sizes(folded)
    net = shrink(prunable.Residual(), sizes)
    net.load_state_dict(folded.state_dict())
    assert torch.equal(output(net, inputs), output(folded, inputs))
    with pytest.raises(Mismatch, match="none"):
        shrink(prunable.Plain(), sizes)


def test_without_inputs_nothing_is_folded():
    with pytest.raises(BadInput, match="no batches"):
        fold_norms(prunable.Residual())
