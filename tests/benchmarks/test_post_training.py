"""The benchmark of post-training compression: its tables from known measurements, its plan, its inputs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests.support.scripts import script


@pytest.mark.parametrize(
    ("goal", "bits"),
    [(70, 1.0), (80, 1.0), (85, 1.5), (90, 2.0), (89, 1.9), (91, 3.0), (92, 4.0), (93, None)],
)
def test_bits_at_which_a_quality_is_reached(goal: float, bits: float | None) -> None:
    """Between measurements by interpolation; a dip in the curve does not count against it."""
    curve = [(4.0, 92.0), (1.0, 80.0), (2.0, 90.0), (3.0, 88.0)]
    found = script("lib.post_training_tables").reach(curve, goal)
    assert found == (None if bits is None else pytest.approx(bits))


def results(tables: ModuleType) -> list:
    """A network that loses little with us and more with others."""
    base = tables.Result("ResNet-20", tables.ORIGINAL, None, size=32000, file_bits=32.0, quality=91.0, better=1)
    base = replace(base, resolution=0.1, metric="accuracy, %", divergence=0.0, inputs=256)

    def made(method: str, bits: float, quality: float, divergence: float) -> object:
        size = int(1000 * bits)
        return replace(
            base, method=method, bits=bits, file_bits=bits, size=size, quality=quality, divergence=divergence
        )

    ours = [made("Quantize(states=8)", b, q, d) for b, q, d in ((4, 91, 0.01), (2, 90.9, 0.04), (1.6, 90.6, 0.08))]
    opponents = [made(tables.GPTQ, b, q, d) for b, q, d in ((4, 90.95, 0.03), (2, 60, 1.0))]
    failed = replace(base, method=tables.ROUNDING, bits=2.0, failed="ValueError: too small")
    return [base, *ours, *opponents, failed]


@pytest.fixture
def made() -> dict:
    tables = script("lib.post_training_tables")
    shown = tables.Shown("Quantize(states=8)", {"ResNet-20": {1.6: 0.5, 2.0: 0.05}})
    return {name: table.rows for name, table in tables.tables(results(tables), shown).items()}


def test_verdicts_are_by_quality_then_by_divergence(made: dict) -> None:
    verdicts = {row[3]: row[-3:] for row in made["quality"]}
    assert verdicts[4][0] == "better" and verdicts[2] == ["better", "-", "better"]


def test_points_lost_are_held_against_their_bars(made: dict) -> None:
    assert [(row[1], round(row[6], 3), row[7]) for row in made["headline"]] == [(2, 0.1, 0.05), (1.6, 0.4, 0.5)]
    met = {row[0]: row[-1] for row in made["claims"]}
    assert met["ResNet-20 at 1.6 bits of the whole file: points of accuracy lost"] is True
    assert met["ResNet-20 at 2 bits of the whole file: points of accuracy lost"] is False


def test_bits_saved(made: dict) -> None:
    by_bits = {row[2]: row for row in made["saved"]}
    assert by_bits[2][5:7] == ["<= 1.600", pytest.approx(0.4)]
    assert by_bits[4][6] == pytest.approx(4 - 3)  # 90.95 lies halfway between 90.9 at 2 bits and 91 at 4
    divergence = 4 - by_bits[4][8]
    assert 2.0 < divergence < 4.0


def test_the_plan_has_every_network_and_no_budget_without_data() -> None:
    post = script("post_training")
    options = post.parse_options(["--bits", "3,2", "--quick"])
    jobs = post.plan(options)
    assert len(jobs) == len(set(jobs)) and all(job.quick for job in jobs)
    without = [job for job in jobs if job.network == post.WITHOUT_DATA]
    assert [job.method for job in without] == [post.ORIGINAL]
    rates = {job.bits for job in jobs if job.network == "ResNet-56" and job.method == options.automatic}
    assert rates == {3.0, 2.0, *post.NEAR}


def test_an_unknown_network_is_named(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        script("post_training").parse_options(["--networks", "ResNet-20,AlexNet"])
    assert "AlexNet" in capsys.readouterr().err


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # a file the data folder's reader left open
@pytest.mark.parametrize("name", ["LeNet-300-100", "Llama 260K", "LSTM 2x128"])
def test_networks_take_their_calibration_inputs(data_file: Callable[[str], Path], name: str) -> None:
    networks, inputs = script("lib.networks"), script("lib.calibration_data")
    network = networks.networks()[name]
    folder = data_file(network.file).parent
    state = network.state(folder)
    batches = inputs.calibration_batches(name, folder, 3)
    model = inputs.model_of(name, folder, state)
    assert sum(len(batch) for batch in batches) == 3
    with torch.inference_mode():
        outputs = model(batches[0])
    outputs = outputs[0] if isinstance(outputs, tuple) else outputs
    assert bool(torch.isfinite(outputs).all()) and len(outputs) == len(batches[0])
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.slow
def test_images_are_either_for_calibration_or_for_measuring(data_file: Callable[[str], Path]) -> None:
    inputs, common = script("lib.calibration_data"), script("lib.common")
    folder = data_file("imagenet_sample_250.npz").parent
    pixels = common.data_module(folder, "imgpack").load(folder / "imagenet_sample_250.npz")[0]
    batches = inputs.calibration_batches("MobileNetV1 0.25", folder, 1000)
    found = torch.cat(batches)
    wanted = torch.from_numpy(pixels[:: inputs.SPARED]).permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.allclose(found, wanted.float())


def test_the_choice_is_compared_in_bits_at_equal_distortion() -> None:
    choice = script("choice")
    first, single, both = choice.LEADING, "LowRank()", "Quantize() + Prune()"
    totals = {first: (1000.0, 1400.0), single: (900.0, 1350.0), both: (800.0, 1320.0), "automatic": (850.0, 1330.0)}
    row = choice.compared("LeNet-300-100", 2.0, totals)
    assert row[2:6] == [single, pytest.approx(-5), both, pytest.approx(-8)]
    assert row[6:] == [pytest.approx(-7), pytest.approx(1)]


@pytest.mark.parametrize(
    ("ours", "others", "divergence", "word"),
    [
        ("f0f0", "f0ff", 0.01, "equal"),  # four samples more can be chance
        ("f0f0", "f0ff", 0.9, "WORSE"),  # unless our outputs are farther away too
        ("0000", "ffff", 0.01, "WORSE"),
        ("", "", 0.01, "WORSE"),
        ("f0ff", "f0f0", 0.01, "better"),
    ],
)
def test_a_few_samples_are_compared_one_by_one(ours: str, others: str, divergence: float, word: str) -> None:
    tables = script("lib.post_training_tables")
    base = tables.Result("SqueezeNet 1.1", "ours", 4.0, better=1, resolution=0.4, metric="accuracy, %")

    def result(right: str, divergence: float) -> object:
        return replace(base, quality=float(bin(int(right or "0", 16)).count("1")), right=right, divergence=divergence)

    other = replace(result(others, 0.5), quality=16.0) if not others else result(others, 0.5)
    assert tables.verdict(result(ours, divergence), other) == word


def test_opponents_that_are_ahead_are_counted_whatever_the_verdict() -> None:
    tables = script("lib.post_training_tables")
    known = [
        replace(run, quality=91.05) if (run.method, run.bits) == (tables.GPTQ, 4) else run for run in results(tables)
    ]
    found = tables.tables(known, tables.Shown("Quantize(states=8)", {}))
    assert next(row for row in found["quality"].rows if row[3] == 4)[-3] == "equal"
    ahead = next(row for row in found["claims"].rows if "by count" in row[0])
    assert ahead[1:] == ["1", "at most 0", False]


def test_the_table_of_pairs_says_how_likely_chance_is(made: dict) -> None:
    assert made["paired"] == []
    tables = script("lib.post_training_tables")
    base = results(tables)
    told = [replace(run, right="0f" if run.method == tables.GPTQ else "fe") for run in base]
    shown = tables.Shown("Quantize(states=8)", {})
    row = next(row for row in tables.tables(told, shown)["paired"].rows if row[1] == 4)
    assert row[2:] == [tables.GPTQ, 4, 1, pytest.approx(2 * (1 + 5) / 32)]
