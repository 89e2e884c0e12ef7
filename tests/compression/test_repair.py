"""Repairs: what can be put right is, what would hurt is rolled back to the bit, and files stay as small."""

import copy
import json

import pytest
import torch
from tests.support.networks import same
from tests.support.small_networks import Normed, Tokens, cifar, disturbed, images, lively, parameters, resnet20
from torch import Tensor, nn

import waterfill
from waterfill import evaluate
from waterfill.compression.steps.repair import repair
from waterfill.errors import BadInput


def network() -> nn.Module:
    return lively(Normed, images(64, 9))


def unchanged(before: dict[str, Tensor], model: nn.Module, but: set[str] | None = None) -> bool:
    return all(same(before[name], value) for name, value in model.state_dict().items() if name not in (but or set()))


def test_a_repaired_network_is_closer_on_inputs_it_has_not_seen() -> None:
    model = network()
    noisy = disturbed(model, 0.15, bias=0.1)
    found = repair(noisy, model, images(96).split(16))
    assert found.after < 0.7 * found.before and found.measure == "divergence"
    fresh = images(64, 77)
    before, after = (evaluate(m, [fresh], reference=model) for m in (noisy, found.model))
    assert after.divergence < 0.8 * before.divergence and after.output_error < before.output_error


def test_only_what_was_kept_is_changed_and_nothing_that_was_given() -> None:
    model = network()
    noisy = disturbed(model, 0.15, bias=0.1).train()
    given, original = parameters(noisy), parameters(model)
    found = repair(noisy, model, images(64).split(16))
    assert unchanged(given, noisy) and unchanged(original, model) and noisy.training and found.model.training
    kept = {name for step in found.steps if step.kept for name in step.tensors}
    assert set(found.changed) == kept and unchanged(given, found.model, kept)
    assert all(same(found.model.state_dict()[name], value) for name, value in found.changed.items())
    assert not any(m._forward_hooks for net in (noisy, model, found.model) for m in net.modules())


def test_steps_chain_and_each_kept_one_falls() -> None:
    model = network()
    found = repair(disturbed(model, 0.3, bias=0.1), model, images(64).split(16))
    now = found.before
    for step in found.steps:
        assert step.before == now
        if step.kept:
            assert step.after < step.before and step.strength in (0.5, 1.0)
            now = step.after
    assert now == found.after and any(step.kept for step in found.steps)


def test_a_network_without_error_is_left_to_the_bit() -> None:
    model = network()
    found = repair(model, model, [images(40)])
    assert not found.changed and found.before == found.after == 0
    assert not any(step.kept for step in found.steps)
    assert unchanged(parameters(model), found.model)


def test_statistics_measured_on_other_inputs_are_rolled_back() -> None:
    """The norms' own statistics are right, the calibration inputs are not what they were taken from."""
    model = network()
    with torch.no_grad():
        compressed = copy.deepcopy(model)
        compressed.head.weight += 1e-3
    found = repair(compressed, model, (2 * images(64, 5) - 3).split(16))
    anew = found.steps[-1]
    assert "anew" in anew.what and not anew.kept and anew.after > anew.before
    assert not {name for name in found.changed if "running" in name}


def test_a_lost_bias_is_found_again_exactly() -> None:
    model = network()
    shifted = copy.deepcopy(model)
    with torch.no_grad():
        shifted.conv2.bias += 0.3
        shifted.head.bias -= torch.arange(10) / 10
    found = repair(shifted, model, images(64).split(16))
    assert found.after < 1e-9
    inputs = images(8, 3)
    assert torch.allclose(found.model(inputs), model(inputs), atol=1e-4)


class Scaled(nn.Module):
    """A layer between its inputs and a norm without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8, bias=False)
        self.norm = nn.RMSNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


def test_scales_without_a_bias_are_found_again_and_the_report_says_what_cannot_be() -> None:
    torch.manual_seed(1)
    model = Scaled()
    worse = copy.deepcopy(model)
    with torch.no_grad():
        worse.norm.weight *= torch.linspace(0.5, 1.5, 8)
    found = repair(worse, model, [torch.randn(64, 6)])
    assert torch.allclose(found.model.norm.weight, model.norm.weight, atol=1e-5)
    bias = next(step for step in found.steps if step.what == "bias correction")
    assert not bias.kept and not bias.tensors and "linear: neither a bias" in bias.note
    assert "not possible (linear" in found.text()


def test_outputs_that_are_no_logits_are_judged_by_their_error() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))
    found = repair(disturbed(model, 0.2, bias=0.3), model, (torch.randn(64, 5) + 1).split(8))
    assert found.measure == "output error" and found.after < found.before
    again = repair(disturbed(network(), 0.2, 0.1), network(), [images(64)], logits=False)
    assert again.measure == "output error" and again.after < again.before


def test_tokens_arguments_and_batches_held_out_by_the_caller() -> None:
    torch.manual_seed(3)
    model, tokens = Tokens(), torch.randint(20, (24, 9))
    noisy = disturbed(model, 0.2, bias=0.3)
    held = [{"tokens": tokens[16:]}]
    found = repair(noisy, model, [{"tokens": batch} for batch in tokens[:16].split(4)], holdout=held)
    assert found.after < found.before
    assert found.before == pytest.approx(evaluate(noisy, held, reference=model).divergence)
    assert found.after == pytest.approx(evaluate(found.model, held, reference=model).divergence)
    other = repair(noisy, model, [tokens], forward=lambda network, batch: network(batch)[0])
    assert other.after < other.before


def test_a_compressed_model_gets_new_vectors_and_keeps_its_size(tmp_path) -> None:
    model = network()
    compressed = waterfill.compress(model, bits=5)
    found = repair(compressed, model, images(96).split(16))
    assert found.after < 0.9 * found.before and found.sizes == (compressed.size, found.model.size)
    assert found.model.size < 1.1 * compressed.size
    assert found.model.save(tmp_path / "m.wf") == found.model.size
    loaded = waterfill.load(tmp_path / "m.wf").install(Normed()).eval()
    before = compressed.state_dict()
    assert unchanged(before, loaded, set(found.changed)) and all(before[name].ndim == 1 for name in found.changed)
    fresh = images(64, 77)
    was = evaluate(compressed.install(Normed()), [fresh], reference=model)
    assert evaluate(loaded, [fresh], reference=model).output_error < was.output_error
    assert json.loads(json.dumps(found.as_json()))["bytes_after"] == found.model.size


def test_a_lossless_file_has_nothing_to_repair() -> None:
    model = network()
    compressed = waterfill.compress(model, lossless=True)
    found = repair(compressed, model, [images(32)])
    assert found.model is compressed and found.sizes == (compressed.size, compressed.size)


@pytest.mark.parametrize(
    ("batches", "options", "said"),
    [
        ([], {}, "two inputs"),
        ([images(1)], {}, "two inputs"),
        ([images(8)], {"holdout": 1.5}, "between 0 and 1"),
        ([images(8)], {"holdout": []}, "two inputs"),
        ([images(8) * float("nan")], {}, "NaN"),
        ([torch.zeros(4, 5)], {}, r"\[1, 5\]"),
    ],
)
def test_inputs_that_cannot_decide_are_refused(batches, options, said) -> None:
    with pytest.raises(BadInput, match=said):
        repair(network(), network(), batches, **options)


def test_two_inputs_are_enough_to_try() -> None:
    model = network()
    found = repair(disturbed(model, 0.3, 0.2), model, [images(2)])
    assert found.after <= found.before


def test_another_network_is_no_reference() -> None:
    with pytest.raises(BadInput, match="no layer"):
        repair(nn.Sequential(nn.Flatten(), Wrapped()), nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), [images(8)])


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.slow
def test_resnet20_is_repaired_and_clean_statistics_are_refused(data_file) -> None:
    model, (x, y) = resnet20(data_file), cifar(data_file, 1000)
    calibration, _ = cifar(data_file, 256, start=5000)
    anew = repair(model, model, calibration.split(64)).steps[-1]
    assert "anew" in anew.what and not anew.kept and anew.after > 1e-4
    compressed = waterfill.compress(model, bits=2)
    found = repair(compressed, model, calibration.split(64))
    test = list(zip(x.split(250), y.split(250), strict=True))
    was, now = (evaluate(c.install(type(model)(20)), test, reference=model) for c in (compressed, found.model))
    assert now.divergence < was.divergence and now.output_error < was.output_error
    assert found.model.size < 1.01 * compressed.size
