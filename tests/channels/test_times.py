"""What channels save in milliseconds: a table of times, with a clock that is known."""

import torch
from tests.support import prunable
from tests.support.small_networks import lively
from torch import nn

import waterfill
from waterfill.channels import Pruning
from waterfill.channels.choice import times
from waterfill.channels.choice.times import Times, interpolated, levels, measured
from waterfill.channels.graph.network import Network
from waterfill.network.running.inputs import Inputs
from waterfill.runtime.speed import Latency


def test_times_between_those_that_were_measured_are_linear():
    grid = [8, 16], [8, 16, 24], [[1.0, 2.0, 3.0], [3.0, 4.0, 9.0]]
    known = {(8, 8): 1.0, (16, 24): 9.0, (12, 8): 2.0, (8, 20): 2.5, (12, 20): 4.5, (4, 8): 0.0}
    assert {at: interpolated(grid, at) for at in known} == known


def test_few_numbers_of_channels_are_timed_by_eights():
    assert levels(3) == [3]
    assert levels(8) == [4, 8]
    assert levels(20) == [8, 16, 20]
    assert levels(64) == [16, 32, 48, 64]


def test_a_layer_is_timed_with_fewer_channels_on_both_sides(monkeypatch):
    seen = []

    def weights(module, args):
        module(*args[0], **args[1])  # which must run
        seen.append(tuple(module.weight.shape))
        return float(module.weight.numel())

    monkeypatch.setattr(times, "shortest", weights)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1, groups=2))
    network = Network(model.eval(), Inputs([torch.randn(4, 3, 6, 6)]))
    clock = Times(network, 4)
    clock.watch(network.layers)
    first = network.layers["0"]
    assert clock.of(first, (3, 16)) == 3 * 16 * 9
    assert clock.of(first, (3, 12)) == 3 * 12 * 9
    assert clock.of(network.layers["1"], (16, 16)) == 16
    assert clock.of(network.layers["2"], (8, 8)) == 8 * 8  # one group of the two
    assert (8, 3, 3, 3) in seen
    assert len(seen) == len(set(seen))


def test_times_never_rise_where_channels_go(monkeypatch):
    noise = iter([5.0, 1.0, 4.0, 2.0])
    monkeypatch.setattr(times, "shortest", lambda module, args: next(noise))
    network = Network(nn.Sequential(nn.Linear(16, 16)).eval(), Inputs([torch.randn(4, 16)]))
    _, _, each = measured(network.layers["0"], ((torch.randn(4, 16),), {}))
    assert each[0][0] < each[0][1] < each[1][1] == 2.0
    assert each[0][0] < each[1][0] < each[1][1]


def test_channels_of_the_layer_that_takes_the_time_go(monkeypatch):
    """With a clock for which one convolution alone takes time, for a speedup no other loses channels."""
    from waterfill.channels import to_speed

    def slow(module):
        return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))

    def speed(models, batches, sizes, *, forward=None):
        took = {name: 1.0 + slow(model) for name, model in models.items()}
        first = next(iter(took.values()))
        return [Latency(name, sizes[0], ms, (ms, ms), first / ms, 0) for name, ms in took.items()]

    monkeypatch.setattr(to_speed, "speed", speed)
    monkeypatch.setattr(times, "shortest", lambda module, args: 1.0 + slow(module))
    inputs = prunable.pictures()
    model = lively(prunable.Fire, inputs)
    pruned = waterfill.prune_channels(model, inputs.split(16), speedup=1.5, how=Pruning(rounds=1, multiple=1))
    left = {row["name"]: row["left"] for row in pruned.table()}
    assert left["expand1"] == 8
    assert left["expand3"] < 8
    assert pruned.speedup >= 1.5


def test_channels_last_stay_last_in_memory():
    inputs = prunable.pictures()
    model = lively(prunable.Residual, inputs).to(memory_format=torch.channels_last)
    pruned = waterfill.prune_channels(model, inputs.split(16), macs=0.6, how=Pruning(rounds=1))
    weight = pruned.model.blocks[0].conv2.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
