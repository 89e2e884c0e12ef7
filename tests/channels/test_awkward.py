"""Pruning what networks and users do that is out of the ordinary."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from tests.support import prunable
from tests.support.small_networks import lively
from torch import Tensor, nn

import waterfill
from waterfill.channels import Pruning
from waterfill.errors import BadInput, BadRecipe, BudgetError

ONCE = Pruning(rounds=1)


def perceptron(*sizes: int) -> nn.Sequential:
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def error(small: nn.Module, model: nn.Module, inputs: Tensor) -> float:
    """The squared error of the outputs relative to their variance."""
    with torch.no_grad():
        wanted, found = model(inputs), small(inputs)
    return float((found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


def test_a_model_in_training_mode_is_not_changed():
    model, inputs = lively(prunable.Plain, prunable.pictures()).train(), prunable.pictures()
    before = copy.deepcopy(model.state_dict())
    waterfill.prune_channels(model, inputs.split(16), macs=0.7, how=ONCE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("inputs", [torch.zeros(32, 8), torch.ones(1, 8), torch.randn(1, 8).expand(64, 8)])
def test_inputs_that_never_vary_are_enough_to_keep_their_outputs(inputs):
    torch.manual_seed(0)
    model = perceptron(8, 16, 16, 4)
    pruned = waterfill.prune_channels(model, [inputs], macs=0.7, how=ONCE)
    assert pruned.macs_share <= 0.7
    torch.testing.assert_close(pruned.model(inputs), model(inputs), rtol=1e-3, atol=1e-3)


def test_means_far_from_zero_hide_no_variance():
    """Channels that vary by about 1 around 3000 are made up for as those around 0 are."""
    torch.manual_seed(0)
    inputs, model = torch.randn(256, 8), nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 5))
    with torch.no_grad():
        model[0].bias += 3000.0
    pruned = waterfill.prune_channels(model, inputs.split(64), macs=0.5, how=ONCE)
    assert error(pruned.model, model, inputs) < 1e-2  # 8 inputs: 32 channels that are linear in them tell all


class Standardized(nn.Conv2d):
    """A convolution whose weights are standardized as it runs: the class is not PyTorch's, its tensors are."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


def test_layers_that_inherit_are_not_fitted_as_if_they_were_plain():
    torch.manual_seed(0)
    inputs = prunable.pictures()
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.Sigmoid(), Standardized(8, 8, 3), nn.Flatten(),
        nn.Linear(8 * 36, 5),
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight[6:] *= 1e-3  # these go first
    pruned = waterfill.prune_channels(model, inputs.split(16), keep=0.8, how=ONCE)
    assert pruned.model[2].in_channels < 16
    kept = pruned.model[4].weight
    assert any(torch.equal(kept[0], row) for row in model[4].weight)


def test_a_part_pruned_alone_goes_into_the_file_of_the_whole():
    torch.manual_seed(0)
    inputs = torch.randn(64, 8)

    def build() -> nn.Module:
        return nn.Sequential(perceptron(8, 32, 16), nn.ReLU(), nn.Linear(16, 3))

    model = build()
    model[0] = waterfill.prune_channels(model[0], [inputs], macs=0.6, how=ONCE).model
    net = waterfill.compress(model, lossless=True).install(build())
    assert torch.equal(net(inputs), model(inputs))
    again = waterfill.prune_channels(net, [inputs], macs=0.6, how=ONCE).model  # the part once more, in the whole
    assert torch.equal(waterfill.compress(again, lossless=True).install(build())(inputs), again(inputs))


def test_weights_made_in_inference_mode_are_pruned():
    with torch.inference_mode():
        model, inputs = perceptron(8, 16, 4), torch.randn(32, 8)
        assert waterfill.prune_channels(model, [inputs], macs=0.5, how=ONCE).macs_share <= 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_stay_what_they_are(dtype):
    torch.manual_seed(0)
    inputs, model = torch.randn(96, 8, dtype=dtype), perceptron(8, 16, 4).to(dtype)
    pruned = waterfill.prune_channels(model, inputs.split(32), macs=0.6, how=ONCE)
    assert {value.dtype for value in pruned.model.state_dict().values()} == {dtype}
    assert F.mse_loss(pruned.model(inputs), model(inputs)) < 0.2 * model(inputs).var()


def test_a_bar_is_shown_on_request(capsys, monkeypatch):
    monkeypatch.setattr("waterfill.progress._PATIENCE", 0.0)
    monkeypatch.setattr("waterfill.progress._PAUSE", 0.0)
    for progress, shown in ((False, False), (None, False), (True, True)):
        how = Pruning(rounds=2, progress=progress)
        waterfill.prune_channels(perceptron(8, 16, 4), [torch.randn(32, 8)], macs=0.6, how=how)
        assert ("pruning" in capsys.readouterr().err) == shown


def test_what_cannot_be_done_is_told_in_words():
    model, inputs = perceptron(8, 16, 4), torch.randn(32, 8)
    with pytest.raises(BadInput, match=r"first batch holds no inputs, but \[0, 8\]"):
        waterfill.prune_channels(model, [inputs[:0], inputs], macs=0.5)
    with pytest.raises(BudgetError, match=r"macs=0.5 cannot be met: .* in multiples of 64, 1 of all multiplications"):
        waterfill.prune_channels(model, [inputs], macs=0.5, how=Pruning(multiple=64))
    with pytest.raises(BudgetError, match=r"Linear can go: it is the network's output"):
        waterfill.prune_channels(nn.Linear(8, 4), [inputs], macs=0.5)
    for wrong in ({"rounds": 2.5}, {"rounds": "4"}, {"batch": True}, {"damping": float("inf")}):
        with pytest.raises(BadRecipe, match=next(iter(wrong))):
            Pruning(**wrong)
