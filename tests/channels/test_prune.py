"""Pruned networks: what goes first, what is made up for, and budgets that are met or refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.support import prunable
from tests.support.small_networks import lively
from torch import Tensor, nn

import waterfill
from waterfill import learn
from waterfill.channels import Pruned, Pruning
from waterfill.errors import BadInput, BadRecipe, BudgetError

ONCE = Pruning(rounds=1)


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        result = model.eval()(inputs)
    return result[0] if isinstance(result, tuple) else result


def error(pruned: Pruned, model: nn.Module, inputs: Tensor) -> float:
    """The squared error of the outputs relative to their variance."""
    wanted = outputs(model, inputs)
    return float((outputs(pruned.model, inputs) - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


def divergence(pruned: Pruned, model: nn.Module, inputs: Tensor) -> float:
    """Of the probabilities, nats."""
    logs = [outputs(net, inputs).log_softmax(1) for net in (pruned.model, model)]
    return float(F.kl_div(*logs, reduction="batchmean", log_target=True))


def with_dead_channels() -> tuple[nn.Module, list[int]]:
    """A network in which some channels of the first convolution are always zero behind their norm."""
    model, dead = lively(prunable.Plain, prunable.pictures()), [1, 4, 6]
    with torch.no_grad():
        model.bn1.bias[dead] = -100.0
    return model, dead


def test_dead_channels_go_first_and_change_nothing():
    model, dead = with_dead_channels()
    inputs = prunable.pictures()
    pruned = waterfill.prune_channels(model, inputs.split(16), keep=17 / 20, how=ONCE)
    left = {row["name"]: row["left"] for row in pruned.table()}
    assert left == {"conv1": 5, "conv2": 12, "head": 1}
    alive = [i for i in range(8) if i not in dead]
    assert torch.equal(pruned.model.bn1.weight, model.bn1.weight[alive])
    torch.testing.assert_close(outputs(pruned.model, inputs), outputs(model, inputs), rtol=1e-4, atol=1e-4)


def test_a_constant_channel_goes_into_the_bias():
    model = lively(prunable.Fire, prunable.pictures())
    with torch.no_grad():
        model.expand1.weight[3] = 0.0
        model.expand1.bias[3] = 5.0
    inputs = prunable.pictures()
    pruned = waterfill.prune_channels(model, inputs.split(16), keep=21 / 22, how=ONCE)
    assert {row["name"]: row["left"] for row in pruned.table()}["expand1"] == 7
    torch.testing.assert_close(outputs(pruned.model, inputs), outputs(model, inputs), rtol=1e-4, atol=1e-4)


def test_a_channel_that_repeats_others_is_made_up_for():
    model = prunable.Perceptron()
    with torch.no_grad():  # the same neuron twice: either can go, and the other does its work
        model.first.weight[5], model.first.bias[5] = -model.first.weight[2], -model.first.bias[2]
    model.eval()
    inputs = torch.randn(96, 12)
    pruned = waterfill.prune_channels(model, inputs.split(32), keep=22 / 23, how=Pruning(rounds=1, damping=1e-6))
    assert pruned.model.first.out_features == 15
    torch.testing.assert_close(outputs(pruned.model, inputs), outputs(model, inputs), rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize(
    ("build", "inputs", "share"),
    [
        (prunable.Residual, prunable.pictures(), 0.6),
        (prunable.Separable, prunable.pictures(), 0.6),
        (prunable.Transformer, prunable.texts(), 0.6),
        (prunable.Recurrent, prunable.texts(), 0.6),
        (lambda: prunable.Recurrent(nn.GRU, 1), prunable.texts(), 0.8),
    ],
)
def test_budgets_of_multiplications_are_met_in_the_users_class(build, inputs, share):
    model = lively(build, inputs)
    before = copy.deepcopy(model.state_dict())
    pruned = waterfill.prune_channels(model, inputs.split(12), macs=share, how=ONCE)
    assert type(pruned.model) is type(model)
    assert 0.5 * share < pruned.macs_share <= share
    assert outputs(pruned.model, inputs).isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    hooks = [m for m in pruned.model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks
    assert not pruned.model.training


def test_multiplications_are_those_of_the_layers():
    pruned = waterfill.prune_channels(lively(prunable.Plain, prunable.pictures()), [prunable.pictures()], keep=0.9)
    conv1, conv2, head = 64 * 8 * 27, 16 * 12 * 8 * 9, 5 * 48
    assert pruned.macs[0] == conv1 + conv2 + head
    first, second = pruned.model.conv1.out_channels, pruned.model.conv2.out_channels
    assert pruned.macs[1] == 64 * first * 27 + 16 * second * first * 9 + 5 * 4 * second


def test_fitting_beats_removing_alone_and_holds_on_other_inputs():
    inputs, others = prunable.pictures(96), prunable.pictures(160)[96:]
    model = lively(prunable.Residual, inputs)
    how = {"plain": Pruning(rounds=1, refit=False), "fitted": ONCE}
    errors = {
        name: error(waterfill.prune_channels(model, inputs.split(32), macs=0.6, how=one), model, others)
        for name, one in how.items()
    }
    assert errors["fitted"] < 0.6 * errors["plain"]


def test_multiples_are_kept():
    model, inputs = lively(prunable.Plain, prunable.pictures()), prunable.pictures()
    pruned = waterfill.prune_channels(model, inputs.split(16), macs=0.5, how=Pruning(rounds=2, multiple=4))
    assert [layer.out_channels % 4 for layer in (pruned.model.conv1, pruned.model.conv2)] == [0, 0]
    assert pruned.macs_share <= 0.5


def test_pruning_twice_keeps_the_sizes_of_both():
    model, inputs = lively(prunable.Plain, prunable.pictures()), prunable.pictures()
    once = waterfill.prune_channels(model, inputs.split(16), macs=0.8, how=ONCE)
    twice = waterfill.prune_channels(once.model, inputs.split(16), macs=0.8, how=ONCE)
    net = waterfill.channels.shrink(prunable.Plain(), twice.sizes)
    net.load_state_dict(twice.model.state_dict())
    assert torch.equal(outputs(net, inputs), outputs(twice.model, inputs))


@pytest.mark.slow
def test_the_smaller_network_exports():
    model, inputs = lively(prunable.Residual, prunable.pictures()), prunable.pictures()
    pruned = waterfill.prune_channels(model, inputs.split(16), macs=0.6, how=ONCE)
    exported = torch.export.export(pruned.model, (inputs[:2],)).module()
    torch.testing.assert_close(exported(inputs[:2]), outputs(pruned.model, inputs[:2]))


def test_the_smaller_network_learns_without_labels():
    model, inputs = lively(prunable.Fire, prunable.pictures()), prunable.pictures()
    pruned = waterfill.prune_channels(model, inputs.split(16), macs=0.4, how=Pruning(rounds=1, refit=False))
    before = divergence(pruned, model, inputs)
    learn.distill(pruned.model, model, inputs.split(16), how=learn.Distillation(epochs=10, rate=1e-2))
    assert divergence(pruned, model, inputs) < 0.7 * before


def test_the_order_of_speed_is_followed(monkeypatch):
    """With a clock that counts multiplications, the speed asked for is reached and not passed by far."""
    from waterfill.channels import to_speed
    from waterfill.channels.choice import times
    from waterfill.runtime.speed import Latency

    def by_weights(models, batches, sizes, *, forward=None):
        counts = {name: sum(p.numel() for p in model.parameters() if p.ndim > 1) for name, model in models.items()}
        first = next(iter(counts.values()))
        return [Latency(name, sizes[0], c / 1e3, (c / 1e3, c / 1e3), first / c, 0) for name, c in counts.items()]

    def weights(module, args):
        return sum(p.numel() for p in module.parameters() if p.ndim > 1) / 1e3

    monkeypatch.setattr(to_speed, "speed", by_weights)
    monkeypatch.setattr(times, "shortest", weights)
    model, inputs = lively(prunable.Fire, prunable.pictures()), prunable.pictures()
    pruned = waterfill.prune_channels(model, inputs.split(16), speedup=1.5, how=ONCE)
    assert 1.5 <= pruned.speedup < 1.8
    assert "times as fast" in pruned.text()
    with pytest.raises(BudgetError, match="cannot be met: without all channels"):
        waterfill.prune_channels(model, inputs.split(16), speedup=100, how=ONCE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch knows as cuda")
@pytest.mark.parametrize(
    ("build", "inputs"), [(prunable.Residual, prunable.pictures()), (prunable.Recurrent, prunable.texts())]
)
def test_networks_are_pruned_on_a_gpu(build, inputs):
    model = lively(build, inputs).to("cuda")
    pruned = waterfill.prune_channels(model, inputs.to("cuda").split(12), macs=0.6, how=ONCE)
    assert pruned.macs_share <= 0.6
    assert all(p.device.type == "cuda" for p in pruned.model.parameters())
    assert outputs(pruned.model, inputs.to("cuda")).isfinite().all()


@pytest.mark.parametrize(
    ("budget", "wanted"),
    [
        ({}, "one budget"),
        ({"macs": 0.5, "keep": 0.5}, "one budget"),
        ({"macs": 1.5}, "between 0 and 1"),
        ({"speedup": 0.5}, "above 1"),
    ],
)
def test_budgets_without_meaning_are_refused(budget, wanted):
    with pytest.raises(BadRecipe, match=wanted):
        waterfill.prune_channels(prunable.Plain(), [prunable.pictures()], **budget)
    with pytest.raises(BadRecipe, match="1 or more"):
        Pruning(rounds=0)


def test_what_cannot_be_worked_on_is_refused():
    model, inputs = prunable.Plain(), prunable.pictures(4)
    with pytest.raises(BadInput, match="without labels"):
        waterfill.prune_channels(model, None, macs=0.5)
    with pytest.raises(BadInput, match="cannot take a batch"):
        waterfill.prune_channels(model, [inputs[:, :2]], macs=0.5)
    with pytest.raises(BudgetError, match="cannot be met"):
        waterfill.prune_channels(model, [inputs], macs=0.001)
    with pytest.raises(BadInput, match="batch=8 inputs"):
        waterfill.prune_channels(model, [inputs], speedup=1.1, how=Pruning(batch=8))
    with pytest.raises(BudgetError, match="no channel of the Linear can go"):
        waterfill.prune_channels(nn.Linear(3, 4), [torch.randn(4, 3)], macs=0.5)
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(BadInput, match="conv1.weight"):
        waterfill.prune_channels(model, [inputs], macs=0.5)
