"""Which combination of quantization, pruning and low rank suits which network, in bytes of the file.

The question of arXiv 2107.04380, asked at equal bytes: every single kind of part, every sum of two, and the sum of all
three, each in all weights of a network, with 256 inputs and without training; and the choice that `compress` makes
weight by weight. All parts are priced: kept entries and factors have no more bits than pay.

    python benchmarks/combinations.py [--networks LeNet-300-100] [--ratios 8,16,32]
"""

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lib.calibration_data import calibration_batches, model_of
from lib.common import CHECKOUT, Table, data_folder, finish
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names, separated by commas")
    parser.add_argument("--ratios", default=",".join(f"{ratio:g}" for ratio in RATIOS), help="how many times smaller")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ratios = [float(text) for text in options.ratios.split(",")]
    rows: list[list[Any]] = []
    for name in options.networks.split(","):
        for row in measured(name, ratios):
            print(*row, flush=True)
            rows.append(row)
            finish("combinations", tables(rows), vars(options), partial=not complete(rows), shown=())
    print(tables(rows)["quality"].text())


def complete(rows: list[list[Any]]) -> bool:
    """Whether everything was measured."""
    return len(rows) == len(NETWORKS) * (1 + len(RECIPES) * len(RATIOS))


def measured(name: str, ratios: list[float]) -> Any:
    """Rows of one network, first as it is."""
    folder = data_folder()
    network = networks()[name]
    state = network.state(folder)
    original = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    evaluate = network.prepare(folder, state, False)
    yield [name, network.metric, "", None, original, evaluate(state).quality, 0.0, 0.0, ""]
    batches = calibration_batches(name, folder, NETWORKS[name])
    for recipe, spec in RECIPES.items():
        for ratio in ratios:
            began = time.process_time()
            row = [name, network.metric, recipe, ratio]
            try:
                made = waterfill.compress(model_of(name, folder, state), batches, spec=spec, ratio=ratio)
            except waterfill.WaterfillError as error:  # a budget that this recipe cannot meet
                yield [*row, None, None, None, time.process_time() - began, str(error)]
                continue
            seconds = time.process_time() - began
            with tempfile.TemporaryDirectory() as place:
                size = made.save(Path(place) / "m.wf")
                found = evaluate(waterfill.load(Path(place) / "m.wf").state_dict())
            yield [*row, size, found.quality, found.divergence, seconds, ""]


RUNS = {"network": "", "metric": "", "recipe": "", "ratio": ".4g", "bytes": ",d", "quality": ".4g"}
RUNS |= {"divergence": ".3g", "seconds": ".0f", "failed": ""}


def tables(rows: list[list[Any]]) -> dict[str, Table]:
    """All runs; and of each network a row for every recipe: quality at the ratios, and divergence."""
    at = {(row[0], row[2], row[3]): row for row in rows}
    ratios = sorted({row[3] for row in rows if row[3]})
    columns = {"network": "", "recipe": ""}
    columns |= {f"{ratio:g}x": ".4g" for ratio in ratios} | {f"{ratio:g}x: divergence": ".3g" for ratio in ratios}
    found = []
    for row in rows:
        if row[3] is None:
            found.append([f"{row[0]}, {row[1]}", "float32", *([row[5]] * len(ratios)), *([0.0] * len(ratios))])
        elif row[3] == ratios[0]:
            runs = [at.get((row[0], row[2], ratio)) for ratio in ratios]
            found.append([row[0], row[2], *(run and run[5] for run in runs), *(run and run[6] for run in runs)])
    return {
        "quality": Table("Quality and divergence in the same bytes, by recipe", columns, found),
        "runs": Table("All runs", RUNS, rows),
    }


def picture(rows: list[list[Any]]) -> str:
    """A chart for each network: divergence by how many times smaller the file is, both in powers."""
    charts = []
    for name in dict.fromkeys(row[0] for row in rows):
        own = [row for row in rows if row[0] == name and row[6]]
        lines = [
            Line(recipe, color, [(math.log2(row[3]), math.log10(row[6])) for row in own if row[2] == recipe])
            for recipe, color in zip(RECIPES, COLORS, strict=True)
        ]
        heights = [y for line in lines for _, y in line.points]
        powers = range(math.floor(min(heights)), max(math.ceil(max(heights)), math.floor(min(heights)) + 1) + 1)
        ticks = [(math.log2(ratio), f"{ratio:g}x") for ratio in sorted({row[3] for row in own})]
        title = f"{name}: divergence from the uncompressed network, nats, by how many times smaller"
        charts.append(Chart(title, lines, ticks, [(float(power), f"{10.0**power:g}") for power in powers]))
    return draw(charts, across=2)


if __name__ == "__main__":
    main()
