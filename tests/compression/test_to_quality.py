"""A budget in quality: the search meets the drop with the smallest file it saw, or says why it cannot."""

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.small_networks import cifar, images, parameters, resnet20
from torch import Tensor, nn

import waterfill
from waterfill import compress_to_quality, evaluate
from waterfill.compression.to_quality import Search
from waterfill.errors import BadInput, BudgetError
from waterfill.evaluation.paired import Scores
from waterfill.evaluation.quality import Drop, Measure, measure_of, parse_drop


class Net(nn.Module):
    """Images [batch, 3, 8, 8] to 10 classes, wide enough that small budgets exist."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.middle = nn.Conv2d(32, 48, 3, padding=1)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.middle(torch.relu(self.conv(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(4)
    net = Net().eval()
    with torch.no_grad():
        net.head.weight *= 40  # logits that say something
    return net


@pytest.fixture(scope="module")
def sizes(net) -> dict[float, waterfill.CompressedModel]:
    """The files of a search that asks for whole tenths of bits."""
    return {}


def by_tenths(net, sizes):
    """A compressor that remembers; quality is then a function of bits alone."""

    def compressor(bits: float) -> waterfill.CompressedModel:
        key = round(bits, 1)
        if key not in sizes:
            sizes[key] = waterfill.compress(net, bits=key)
        return sizes[key]

    return compressor


def test_the_file_meets_the_drop_and_a_smaller_one_does_not(net) -> None:
    x = images(64, 1)
    measure = measure_of("divergence", [x], net)
    before = parameters(net)
    found, trace = compress_to_quality(net, measure, 1e-3)
    lost = evaluate(found.install(Net()), [x], reference=net).divergence
    assert lost <= 1e-3 and len(trace.trials) <= 10
    mine = next(trial for trial in trace.trials if trial.size == found.size)
    assert mine.met and mine.quality == pytest.approx(lost)
    assert found.size == min(trial.size for trial in trace.trials if trial.met)
    smaller = [trial for trial in trace.trials if not trial.met]
    assert smaller and max(trial.bits for trial in smaller) > 0.85 * mine.bits
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_more_may_be_lost_in_fewer_bytes(net, sizes) -> None:
    measure = measure_of("divergence", [images(32, 1)], net)
    found = [
        compress_to_quality(net, measure, drop, compressor=by_tenths(net, sizes))[0].size for drop in (1e-4, 1e-3, 1e-2)
    ]
    assert found == sorted(found, reverse=True) and found[0] > found[-1]


class Fake:
    """A compressed model in which only size and quality matter."""

    def __init__(self, bits: float) -> None:
        self.bits, self.size = bits, round(1000 * bits)

    def install(self, module: nn.Module) -> nn.Module:
        module.weight.data.fill_(self.bits)
        return module


def search(quality, drop, better=1, **options):
    """A search over fakes; quality: bits -> quality, the original's at 100 bits."""
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 100)
    measure = Measure(lambda m: quality(float(m.weight)), better)
    return compress_to_quality(model, measure, drop, compressor=Fake, search=Search(**options))


@given(st.floats(0.6, 7.9), st.sampled_from([0.02, 0.1]))
def test_the_search_finds_the_edge(edge, tolerance) -> None:
    found, trace = search(lambda bits: float(bits >= edge), 0.5, tolerance=tolerance, evaluations=12)
    assert edge <= found.bits <= edge * (1 + tolerance) + 1e-5
    assert len(trace.trials) <= 12


@given(st.lists(st.floats(0, 1), min_size=100, max_size=100), st.integers(1, 8))
def test_chance_or_not_what_is_returned_was_seen_to_meet_the_drop(noise, evaluations) -> None:
    try:
        found, trace = search(lambda bits: noise[int(bits * 12)] if bits < 8 else 1.0, 0.3, evaluations=evaluations)
    except BudgetError:
        return
    met = [trial.size for trial in trace.trials if trial.met]
    assert found.size == min(met) and len(trace.trials) <= evaluations
    assert all(trial.met == (trial.lost <= 0.3 + 1e-9) for trial in trace.trials)


def test_a_drop_that_costs_nothing_gives_the_fewest_bits() -> None:
    found, trace = search(lambda bits: 1.0, 0.0)
    assert found.bits == 0.1 and len(trace.trials) <= 10


def test_where_chance_decides_the_gap_below_the_file_is_looked_into() -> None:
    """Half of the scores of small files are worse by so little that no single file is clearly too bad."""
    model, generator = nn.Linear(1, 1), torch.Generator().manual_seed(0)
    nn.init.constant_(model.weight, 100)
    noise = torch.rand(400, generator=generator, dtype=torch.float64)

    def scores(m: nn.Module) -> Scores:
        bits = float(m.weight)
        return Scores(noise - (0.3 * noise.flip(0) - 0.1 if bits < 1 else 0.0), torch.ones(400))

    options = Search(bits=(0.5, 8), sure=0.99)
    found, trace = compress_to_quality(model, Measure(scores, 1), 0.045, compressor=Fake, search=options)
    below = max(trial.bits for trial in trace.trials if trial.bits < found.bits)
    assert found.bits / below < 1.05 and len(trace.trials) <= 10


def test_a_drop_that_no_file_meets_is_an_error_with_the_numbers() -> None:
    with pytest.raises(BudgetError, match=r"at most 0.1 from 1 was not met: at 8 bits per weight \(8000 bytes\) 0.92"):
        search(lambda bits: bits / 100, 0.1)
    with pytest.raises(BudgetError, match="could be measured"):
        search(lambda bits: 1.0 if bits > 99 else float("nan"), 0.1)


def test_the_most_bits_are_tried_before_giving_up() -> None:
    found, trace = search(lambda bits: float(bits >= 8), 0.5, evaluations=2)
    assert found.bits == 8 and [trial.bits for trial in trace.trials] == [3, 8]


def test_files_that_cannot_be_so_small_count_as_not_met(net) -> None:
    found, trace = compress_to_quality(
        net, lambda model: 1.0, 0.0, search=Search(bits=(0.001, 8), start=0.01, evaluations=6)
    )
    assert trace.trials[0].size is None and not trace.trials[0].met and found.size > 0
    assert json.loads(json.dumps(trace.as_json(), allow_nan=False))["trials"][0]["quality"] is None
    assert "no file so small" in trace.text() and f"{found.size} bytes" in trace.text()


def test_less_is_better_and_shares_of_the_original() -> None:
    def perplexity(bits: float) -> float:
        return 5 * (1 + 4**-bits)

    found, trace = search(perplexity, Drop(0.01, relative=True), better=-1, evaluations=12)
    assert trace.allowed == pytest.approx(0.05)
    assert perplexity(found.bits) <= 5.05 < perplexity(found.bits * 0.97)


def test_the_measure_cannot_spoil_the_model_nor_meet_it_in_training_mode() -> None:
    model = nn.Linear(3, 3).train()
    before = copy.deepcopy(model.state_dict())

    def spoiling(network: nn.Module) -> float:
        assert not network.training and not torch.is_grad_enabled()
        network.weight.fill_(0)
        return 1.0

    compress_to_quality(model, spoiling, 0.5, compressor=Fake, search=Search(evaluations=2))
    assert model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("text", "metric", "drop"),
    [
        ("0.5%", "accuracy", Drop(0.005)),
        ("2 %", "agreement", Drop(0.02)),
        ("0.5%", "perplexity", Drop(0.005, relative=True)),
        ("0.25", "accuracy", Drop(0.25)),
        (" 0.02 ", "divergence", Drop(0.02)),
        ("0", "nats", Drop(0.0)),
    ],
)
def test_a_drop_as_people_write_it(text, metric, drop) -> None:
    found = parse_drop(text, metric)
    assert found.relative == drop.relative and found.amount == pytest.approx(drop.amount)


@pytest.mark.parametrize("text", ["", "%", "half", "-1", "nan", "inf%", "1%%"])
def test_a_drop_without_meaning_is_refused(text) -> None:
    with pytest.raises(BadInput, match="a drop of"):
        parse_drop(text)


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="nats"):
        parse_drop("1%", "divergence")
    with pytest.raises(BadInput, match="plain number"):
        search(lambda bits: 0.0, Drop(0.1, relative=True))


@pytest.mark.parametrize(
    "options",
    [{"bits": (3, 2)}, {"better": 0}, {"evaluations": 0}, {"tolerance": 0}, {"sure": 1.0}, {"bits": (0, 2)}],
)
def test_arguments_without_meaning_are_refused(options) -> None:
    with pytest.raises(BadInput):
        search(lambda bits: 1.0, 0.1, **options)


def test_an_original_that_cannot_be_measured_is_refused(net) -> None:
    with pytest.raises(BadInput, match="before it is compressed"):
        search(lambda bits: float("nan"), 0.1)
    with pytest.raises(BadInput, match="accuracy"):
        measure_of("accuracy", [images(2)], net)(net)
    with pytest.raises(BadInput, match="not one of"):
        measure_of("beauty", [images(2)], net)


def test_measures_are_those_of_evaluate(net) -> None:
    batches = [(images(32), torch.arange(32) % 10)]
    known = evaluate(net, batches, reference=net)
    for metric in ("accuracy", "top5", "perplexity", "nats", "divergence", "agreement"):
        assert measure_of(metric, iter(batches), net)(net) == getattr(known, metric)


@pytest.mark.slow
def test_resnet20_loses_no_more_than_a_point(data_file) -> None:
    model, (x, y) = resnet20(data_file), cifar(data_file, 500)
    batches = list(zip(x.split(100), y.split(100), strict=True))
    measure = measure_of("accuracy", batches, model)
    found, trace = compress_to_quality(model, measure, parse_drop("1%"), search=Search(evaluations=5, start=2.5))
    assert measure(found.install(copy.deepcopy(model))) >= trace.original - 0.01
    assert found.bits < 4
