"""Train big, then compress; and distill, then compress: at equal compute and equal bytes, on Fashion-MNIST.

Networks of three layers of several widths get the same compute in training, and each is compressed with 256 inputs to
the same bytes (arXiv 2002.11794 asks which is best). Then the widest teaches the narrowest without labels, which is
compressed too, beside the narrowest as trained with labels.

    python benchmarks/families.py [--quick]
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lib.common import Table, claim, claims_table, data_folder, data_module, finish
from opponents import gptq
from torch import Tensor, nn

import waterfill
from waterfill.learn import Distillation, distill, train_big

WIDTHS = (32, 64, 128, 256, 512)
BUDGETS = (4_000, 8_000, 16_000)
COMPUTE, QUICK_COMPUTE = 8e11, 1e10
"""Operations of all forward passes of a training: ten passes through the data for the widest."""
BATCH, INPUTS, RATE = 128, 256, 2e-3
DISTILLED, QUICK_DISTILLED = 30, 1
"""Passes through the data of the distillation."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="hardly any training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = data_folder()
    (x, y), test = load(folder, "train"), load(folder, "test")
    few = list(x[:: len(x) // INPUTS][:INPUTS].split(32))
    trained: dict[str, nn.Module] = {}

    def built(width: int) -> nn.Module:
        return network(width)

    def fit(model: nn.Module, steps: int) -> None:
        train(model, (x, y), steps)
        trained[f"width {model[1].out_features}"] = model

    began = time.process_time()
    pareto = train_big(
        {f"width {width}": (lambda width=width: built(width)) for width in WIDTHS},
        x[:BATCH],
        train=fit,
        compute=QUICK_COMPUTE if options.quick else COMPUTE,
        budgets=BUDGETS,
        compress=lambda model, budget: waterfill.compress(model, few, size=budget.size),
        measure=lambda model: accuracy(model, test),
    )
    print(f"trained and compressed: {time.process_time() - began:.0f} s", flush=True)
    rows = []
    for row in pareto.table():
        rounded = plain(trained[row["network"]], row["budget"], test)
        rows.append([*(row[key] for key in KEYS), rounded, bool(row["best"])])
    students = list(distilled(trained, x, few, test, QUICK_DISTILLED if options.quick else DISTILLED))
    smallest = {row[0]: row for row in rows if row[3] == BUDGETS[0]}
    best = max((row[6] or 0.0) - (smallest[f"width {WIDTHS[0]}"][6] or 0.0) for row in smallest.values())
    tables = {
        "families": Table("Equal compute, equal bytes: accuracy on Fashion-MNIST, %", FAMILIES, rows),
        "distilled": Table("Taught by the widest, then compressed: accuracy on Fashion-MNIST, %", STUDENTS, students),
        "claims": claims_table([claim(f"points that training big gains at {BUDGETS[0]:,} bytes", best, 0.5, ".2f")]),
    }
    finish("families", tables, vars(options), partial=options.quick, shown=tables)


KEYS = ("network", "weights", "steps", "budget", "size", "trained", "quality")
FAMILIES = {"network": "", "weights": ",d", "steps": ",d", "budget": ",d", "bytes": ",d", "uncompressed": ".2f"}
FAMILIES |= {"compressed": ".2f", "rounding g128, as many bytes": ".2f", "best": ""}
STUDENTS = {"network": "", "learned from": "", "bytes": ",d", "accuracy": ".2f"}


def network(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def load(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images [n, 28, 28], scaled, and labels."""
    pixels, labels = data_module(folder, "imgpack").load(folder / f"fashion_mnist_{part}.npz")
    x = (torch.from_numpy(pixels).float() / 255 - 0.2860) / 0.3530
    return x, torch.from_numpy(labels.astype(np.int64))


def train(model: nn.Module, data: tuple[Tensor, Tensor], steps: int) -> None:
    """So many steps of Adam, the rate falling to zero."""
    x, y = data
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    for step in range(steps):
        some = torch.randint(0, len(x), (BATCH,))
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        optimizer.zero_grad()
        F.cross_entropy(model(x[some]), y[some]).backward()
        optimizer.step()


def accuracy(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    with torch.inference_mode():
        return 100 * float((model.eval()(test[0]).argmax(1) == test[1]).double().mean())


def plain(model: nn.Module, budget: int, test: tuple[Tensor, Tensor]) -> float | None:
    """The accuracy after rounding in groups of 128, within a budget; None below one bit."""
    state = model.state_dict()
    try:
        _, restored = gptq.Opponent(dict(state), {}).within(budget)
    except ValueError:
        return None
    other = network(model[1].out_features)
    other.load_state_dict(restored)
    return accuracy(other, test)


def distilled(
    trained: dict[str, nn.Module], x: Tensor, few: list[Tensor], test: tuple[Tensor, Tensor], epochs: int
) -> Any:
    """Rows of the teacher, the narrowest by labels, the narrowest taught, and both compressed."""
    teacher, narrow = trained[f"width {WIDTHS[-1]}"], trained[f"width {WIDTHS[0]}"]
    student = network(WIDTHS[0])
    distill(student, teacher, x.split(BATCH), how=Distillation(epochs=epochs, rate=RATE))
    for name, source, model in (
        (f"width {WIDTHS[-1]}", "labels", teacher),
        (f"width {WIDTHS[0]}", "labels", narrow),
        (f"width {WIDTHS[0]}", f"width {WIDTHS[-1]}, without labels", student),
    ):
        yield [name, source, 4 * sum(p.numel() for p in model.parameters()), accuracy(model, test)]
        for budget in BUDGETS[:2]:
            made = waterfill.compress(model, few, size=budget)
            yield [
                f"{name}, compressed",
                source,
                made.size,
                accuracy(made.install(network(model[1].out_features)), test),
            ]


if __name__ == "__main__":
    main()
