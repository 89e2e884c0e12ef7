"""A budget in quality measured on a few inputs: chance neither ends the search nor picks the file, and is said."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

from waterfill import Options, Steps, compress, compress_to_quality
from waterfill.compression.post_training import calibrated
from waterfill.compression.quality_trace import Trial, smoothed
from waterfill.compression.to_quality import Search
from waterfill.errors import BadInput, BudgetError
from waterfill.evaluation.paired import Difference, Scores
from waterfill.evaluation.quality import Measure, measure_of
from waterfill.network.running.inputs import Inputs

ORIGINAL = 100.0  # bits of the model that is not compressed


class Fake:
    """A compressed model in which only size and quality matter."""

    def __init__(self, bits: float) -> None:
        self.bits, self.size = bits, round(1000 * bits)

    def install(self, module: nn.Module) -> nn.Module:
        module.weight.data.fill_(self.bits)
        return module


def search(lost, drop, inputs: int = 800, **options):
    """A search where so many of the inputs that the original has right are wrong at so many bits: lost(bits)."""
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, ORIGINAL)

    def scores(m: nn.Module) -> Tensor:
        bits = float(m.weight)
        right = torch.ones(inputs)
        right[: 0 if bits == ORIGINAL else lost(bits)] = 0
        return right

    return compress_to_quality(model, Measure(scores, points=True), drop, compressor=Fake, search=Search(**options))


def test_a_clip_too_many_at_some_size_does_not_hide_the_smaller_file() -> None:
    def lost(bits: float) -> int:  # the truth lets 1.6 bits pass; by one input of 800, a file at about 2.4 does not
        return 400 if bits < 1.6 else 5 if 2.3 < bits < 2.5 else 4

    found, trace = search(lost, 4 / 800, evaluations=16)
    assert found.bits < 1.7
    assert trace.chosen.size == found.size and trace.chosen.met


def test_a_lucky_file_is_not_taken_for_what_its_neighbors_say() -> None:
    def lost(bits: float) -> int:  # at about 1.9 bits chance is kind; all around a little too much is lost
        return 400 if bits < 1.2 else 3 if 1.8 < bits < 1.95 else 6 if bits < 4 else 3

    found, trace = search(lost, 4 / 800, evaluations=20)
    lucky = [trial for trial in trace.trials if 1.8 < trial.bits < 1.95]
    assert lucky and all(trial.lost <= 4 / 800 and not trial.met for trial in lucky)
    assert found.bits >= 4


def test_how_sure_it_is_is_the_paired_error_of_the_same_inputs() -> None:
    found, trace = search(lambda bits: 8 if bits >= 2 else 600, 0.02, inputs=1000, evaluations=12)
    error = math.sqrt((8 * (1 - 8 / 1000) ** 2 + 992 * (8 / 1000) ** 2 + 1) / 1000 / 999)
    assert trace.chosen.difference.error == pytest.approx(error)
    expected = 0.5 * math.erfc(-(0.02 - 0.008) / error / math.sqrt(2))
    assert trace.chosen.sure(0.02) == pytest.approx(expected)
    assert "drop 0.8 ± 0.299 points (paired, 1,000 inputs); over 99.9 % sure that at most 2 points are lost" in (
        trace.text()
    )
    row = json.loads(json.dumps(trace.as_json(), allow_nan=False))["chosen"]
    assert row["standard_error"] == pytest.approx(error) and row["inputs"] == 1000
    assert row["sure"] == pytest.approx(expected) and row["bits"] == found.bits


def test_more_certainty_takes_a_larger_file_or_is_refused() -> None:
    def lost(bits: float) -> int:
        return round(16 / bits)

    likely, sure = (search(lost, 0.01, evaluations=12, sure=sure) for sure in (0.5, 0.95))
    assert sure[0].bits > likely[0].bits
    assert likely[1].chosen.sure(0.01) < 0.8 and "more inputs" in likely[1].text()
    assert sure[1].chosen.sure(0.01) >= 0.95 and "more inputs" not in sure[1].text()
    with pytest.raises(BudgetError, match=r"with the certainty asked for: drop .* % sure"):
        search(lambda bits: 8, 0.01, sure=0.95)


def test_inputs_that_did_not_change_leave_some_doubt() -> None:
    _, trace = search(lambda bits: 0, 0.0, inputs=50)
    assert 0 < trace.chosen.difference.error == pytest.approx(1 / 50, rel=0.02)
    assert trace.chosen.sure(0.0) == 0.5


def test_numbers_alone_are_taken_as_they_are() -> None:
    model = nn.Linear(1, 1)
    found, trace = compress_to_quality(model, lambda m: 1.0, 0.0, compressor=Fake)
    assert trace.chosen.sure(0.0) is None and "does not say" in trace.text() and found.bits == 0.1


def test_losses_are_smoothed_where_more_bits_lose_more() -> None:
    trials = [Trial(bits, 1, 0.0, Difference(lost, 0.1, 9)) for bits, lost in ((3, 1.0), (1, 5.0), (2, 0.5), (4, 2.0))]
    assert [trial.smoothed for trial in smoothed(trials)] == pytest.approx([3.5 / 3, 5.0, 3.5 / 3, 3.5 / 3])
    assert math.isnan(smoothed([Trial(1, 1, 0.0, Difference(1.0))])[0].smoothed)


def test_an_original_no_better_than_chance_stops_it() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(8, 4), torch.randn(200, 8)
    for metric in ("accuracy", "nats", "perplexity"):
        measure = measure_of(metric, [(x, torch.randint(0, 4, (200,)))], net)
        with pytest.raises(BadInput, match="always gives the same answer"):
            compress_to_quality(net, measure, 0.05)
    always = [(x, torch.zeros(200, dtype=torch.int64))]  # all of one class: always right is no merit
    sure = nn.Linear(8, 4)
    nn.init.zeros_(sure.weight)
    sure.bias.data = torch.tensor([9.0, 0, 0, 0])
    with pytest.raises(BadInput, match=r"measures 1 .* 1:"):
        compress_to_quality(sure, measure_of("accuracy", always, sure), 0.05)


def test_another_measurement_has_to_be_of_the_same_inputs() -> None:
    sizes = iter([5, 6])

    def changing(model: nn.Module) -> Scores:
        ones = torch.ones(next(sizes), dtype=torch.float64)
        return Scores(ones, ones)

    with pytest.raises(BadInput, match="different inputs"):
        compress_to_quality(nn.Linear(1, 1), Measure(changing), 0.1, compressor=Fake)


@pytest.mark.slow
def test_what_was_calibrated_once_makes_the_files_that_calibrating_anew_makes() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(24, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8)).eval()
    net[1].running_var.uniform_(0.5, 2)
    runs = 0

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        nonlocal runs
        runs += torch.is_grad_enabled()
        return model(x)

    x, options = torch.randn(64, 24), Options(steps=Steps(stages=2))
    with calibrated(net, Inputs(x.split(16), forward), options=options) as measured:
        calibrating = runs
        files = [measured(bits) for bits in (6.0, 4.0)]
    assert runs == calibrating > 0
    for bits, made in zip((6.0, 4.0), files, strict=True):
        anew = compress(net, x.split(16), bits=bits, forward=forward, options=options)
        assert {name: entry.blob for name, entry in anew.entries.items()} == {
            name: entry.blob for name, entry in made.entries.items()
        }
