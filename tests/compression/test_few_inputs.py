"""Few inputs help, or are left out; and there is a word about them."""

import copy

import pytest
import torch
from tests.support.small_networks import images
from torch import Tensor, nn

import waterfill
from waterfill.calibration.calibrate import calibrate
from waterfill.cli import main
from waterfill.compression import post_training
from waterfill.compression.steps.few_inputs import better_without
from waterfill.compression.task import Task
from waterfill.network.running.inputs import Inputs


class Net(nn.Module):
    """Convolutions before a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(channels, 16, 3, padding=1) for channels in (3, 16, 16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Net().eval()


def smooth(count: int, seed: int) -> Tensor:
    """Images whose neighbors correlate."""
    return nn.functional.interpolate(images(count, seed)[:, :, :4, :4], scale_factor=2, mode="bilinear")


TEST = smooth(64, 8)
QUICK = waterfill.Options(steps=waterfill.Steps(stages=1, repair=False))


def lost(model: nn.Module, made: waterfill.CompressedModel) -> float:
    """The relative error of outputs on other inputs."""
    with torch.no_grad():
        wanted, found = model(TEST), made.install(copy.deepcopy(model))(TEST)
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("count", [1, *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 4))])
def test_so_few_inputs_are_better_than_none_and_a_word_says_that_they_are_few(net, count) -> None:
    made = waterfill.compress(net, [smooth(count, 7)], spec="Quantize()", bits=3)
    assert lost(net, made) < lost(net, waterfill.compress(net, bits=3))
    assert f"{count} outputs were seen" in made.warnings[""]


def test_one_sample_counts_a_third_of_what_it_says_of_rows(net) -> None:
    word = calibrate(net, [smooth(1, 5)])
    work = Task.of(net, "Quantize()", word)
    for weight in work.weights:
        if weight.layout.entries > 1000:
            given, leaning = (rows / rows.mean() for rows in (word[weight.name].rows, weight.importance().rows))
            assert torch.allclose(leaning - 1, (given - 1) / 3, rtol=1e-3, atol=1e-6)


def test_many_samples_are_taken_at_their_word(net) -> None:
    found = calibrate(net, [smooth(96, 6)])
    work = Task.of(net, "Quantize()", found)
    for weight in work.weights:
        assert weight.importance is None or torch.equal(weight.importance().rows, found[weight.name].rows)


@pytest.mark.parametrize("misleading", [True, False])
def test_inputs_that_make_others_worse_are_left_out(net, misleading) -> None:
    good, bad = (waterfill.compress(net, bits=bits) for bits in (6, 2))
    made, asked = [], []

    def compress(importance):
        made.append(bad if (importance is not None) == misleading else good)
        return made[-1]

    inputs = Inputs([smooth(4, 3)])
    found = better_without(net, inputs, lambda some: asked.append(some) or object(), compress)
    assert (found is good) if misleading else found is None
    assert len(made) == 2 and [len(batch) for batch in asked[0].batches] == [2]
    assert better_without(net, Inputs([smooth(1, 3)]), lambda some: object(), compress) is None


def test_a_file_made_without_its_inputs_says_so_and_keeps_to_the_budget(net, monkeypatch) -> None:
    monkeypatch.setattr(post_training, "better_without", lambda model, inputs, calibrate, compress: compress(None))
    made = waterfill.compress(net, [smooth(4, 3)], spec="Quantize()", bits=3, options=QUICK)
    assert "made the outputs of others worse" in made.warnings[""]
    assert 0.9 * 3 < made.bits <= 3


def test_what_is_to_be_known_of_the_whole_travels_as_a_word(net, tmp_path, capsys) -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0.1 * torch.randn(10)

    model = Noisy().eval()
    model.load_state_dict(net.state_dict())
    made = waterfill.compress(model, [smooth(8, 7)], spec="Quantize()", price=1e-4, options=QUICK)
    assert "random numbers" in made.warnings[""] and "8 outputs were seen" in made.warnings[""]
    made.save(tmp_path / "m.wf")
    assert waterfill.load(tmp_path / "m.wf").warnings == made.warnings
    assert main(["info", str(tmp_path / "m.wf")]) == 0
    assert f"warning: {made.warnings['']}" in capsys.readouterr().out
    for remarks in (3, {}, ["none of ours", 4]):
        made.notes["remarks"] = remarks
        assert "8 outputs" in made.warnings[""] and "random" not in made.warnings[""]


@pytest.mark.slow
def test_a_loader_that_shuffles_shows_both_networks_the_same(net) -> None:
    class Shuffled:
        """Batches in another order each time."""

        def __init__(self) -> None:
            self.times = 0

        def __iter__(self):
            self.times += 1
            order = torch.randperm(96, generator=torch.Generator().manual_seed(self.times))
            return iter(smooth(96, 7)[order].split(32))

    shuffled, listed = (
        lost(net, waterfill.compress(net, b, spec="Quantize()", bits=2.5))
        for b in (Shuffled(), list(smooth(96, 7).split(32)))
    )
    assert shuffled < 1.15 * listed
