"""Which combination of quantization, pruning and low rank suits which network, in bytes of the file.

The question of arXiv 2107.04380, asked at equal bytes: every single kind of part, every sum of two, and the sum of all
three, each in all weights of a network, with 256 inputs and without training; and the choice that `compress` makes
weight by weight. All parts are priced: kept entries and factors have no more bits than pay.

    python benchmarks/combinations.py [--resume] [--networks LeNet-300-100]
"""

import argparse
import math
import tempfile
import time
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from lib.calibration_data import calibration_batches, model_of
from lib.common import CHECKOUT, Table, data_folder, finish, measured_before
from lib.networks import networks
from lib.picture import Chart, Line, draw

import waterfill

NETWORKS = {"LeNet-300-100": 256, "ResNet-20": 256, "LSTM 2x128": 256, "Llama 260K": 64}
"""Networks, and how many inputs they are calibrated with."""
RATIOS = (8.0, 16.0, 32.0)
Q, P, L = "Quantize()", "Prune()", "LowRank()"
AUTOMATIC = "automatic"
RECIPES: dict[str, str | None] = {
    "Q": Q,
    "P": P,
    "L": L,
    "Q + P": f"{Q} + {P}",
    "L + P": f"{L} + {P}",
    "Q + L": f"{Q} + {L}",
    "Q + L + P": f"{Q} + {L} + {P}",
    AUTOMATIC: None,
}
COLORS = ("#0b6bcb", "#c4501b", "#2d8a3e", "#8a4fbf", "#b8860b", "#0f9aa8", "#c2317a", "#222222")
PICTURE = CHECKOUT / "docs" / "results" / "combinations.svg"


@dataclass(frozen=True)
class Job:
    """One fit: a network, a recipe of `RECIPES` and how many times smaller the file is to be; "" and None: as it is."""

    network: str
    recipe: str = ""
    ratio: float | None = None


_FIELDS = len(fields(Job))


def plan() -> list[Job]:
    """All rows, in order."""
    each = [Job(""), *(Job("", recipe, ratio) for recipe in RECIPES for ratio in RATIOS)]
    return [replace(job, network=name) for name in NETWORKS for job in each]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--resume", action="store_true", help="keep what the partial results hold")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names, separated by commas")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = earlier() if options.resume else {}
    for job in plan():
        if job.network in options.networks.split(",") and job not in known:
            known[job] = measured(job)
            print(job, *known[job], flush=True)
            finish("combinations", tables(known), vars(options), partial=len(known) < len(plan()), shown=())
    print(tables(known)["quality"].text())


def earlier() -> dict[Job, list[Any]]:
    """What was measured before."""
    return {Job(*row[:_FIELDS]): row[_FIELDS:] for row in measured_before("combinations", "runs")}


def measured(job: Job) -> list[Any]:
    """Metric, bytes of the file, quality, divergence, seconds, and why there is nothing."""
    folder = data_folder()
    network = networks()[job.network]
    state = network.state(folder)
    evaluate = network.prepare(folder, state, False)
    if not job.recipe:
        original = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        return [network.metric, original, evaluate(state).quality, 0.0, 0.0, ""]
    batches = calibration_batches(job.network, folder, NETWORKS[job.network])
    began = time.process_time()
    model, spec = model_of(job.network, folder, state), RECIPES[job.recipe]
    try:
        made = waterfill.compress(model, batches, spec=spec, ratio=job.ratio)
    except waterfill.WaterfillError as error:  # a budget that this recipe cannot meet
        return [network.metric, None, None, None, time.process_time() - began, str(error)]
    seconds = time.process_time() - began
    with tempfile.TemporaryDirectory() as place:
        size = made.save(Path(place) / "m.wf")
        found = evaluate(waterfill.load(Path(place) / "m.wf").state_dict())
    return [network.metric, size, found.quality, found.divergence, seconds, ""]


RUNS = {"network": "", "recipe": "", "ratio": ".4g", "metric": "", "bytes": ",d", "quality": ".4g"}
RUNS |= {"divergence": ".3g", "seconds": ".0f", "failed": ""}


def tables(known: dict[Job, list[Any]]) -> dict[str, Table]:
    """All runs; and of each network a row for every recipe: quality at the ratios, and divergence."""
    columns = {"network": "", "recipe": ""}
    columns |= {f"{ratio:g}x": ".4g" for ratio in RATIOS} | {f"{ratio:g}x: divergence": ".3g" for ratio in RATIOS}
    found: dict[tuple[str, str], list[Any]] = {}
    for job in (job for job in plan() if job in known):
        metric, _, quality, divergence, *_ = known[job]
        name, recipe = (job.network, job.recipe) if job.recipe else (f"{job.network}, {metric}", "float32")
        row = found.setdefault((name, recipe), [name, recipe, *[None] * (2 * len(RATIOS))])
        for i, ratio in enumerate(RATIOS):
            if job.ratio in (None, ratio):
                row[2 + i], row[2 + len(RATIOS) + i] = quality, divergence
    rows = [[*astuple(job), *known[job]] for job in plan() if job in known]
    return {
        "quality": Table("Quality and divergence in the same bytes, by recipe", columns, list(found.values())),
        "runs": Table("All runs", RUNS, rows),
    }


def picture(rows: list[list[Any]]) -> str:
    """A chart for each network: divergence by how many times smaller the file is, both in powers. rows: "All runs"."""
    known = {Job(*row[:_FIELDS]): row[_FIELDS:] for row in rows}
    charts = []
    for name in dict.fromkeys(job.network for job in known):
        own = {job: row[3] for job, row in known.items() if job.network == name and row[3]}
        lines = [
            Line(recipe, color, [(_octaves(job), math.log10(own[job])) for job in own if job.recipe == recipe])
            for recipe, color in zip(RECIPES, COLORS, strict=True)
        ]
        heights = [y for line in lines for _, y in line.points]
        powers = range(math.floor(min(heights)), max(math.ceil(max(heights)), math.floor(min(heights)) + 1) + 1)
        ticks = [(math.log2(ratio), f"{ratio:g}x") for ratio in RATIOS]
        title = f"{name}: divergence from the uncompressed network, nats, by how many times smaller"
        charts.append(Chart(title, lines, ticks, [(float(power), f"{10.0**power:g}") for power in powers]))
    return draw(charts, across=2)


def _octaves(job: Job) -> float:
    return math.log2(job.ratio or 1.0)


if __name__ == "__main__":
    main()
