"""How far the claims of the ResNets depend on which images they are calibrated with: several sets of 256.

Everything else is as in `post_training.py`: files of the same bytes, measured on the 10,000 test images.
Accuracy moves by a tenth or two with where codes happen to fall, which is as much as some claims leave room for; the
mean over sets says more than one of them.

    python benchmarks/calibrations.py [--sets 3] [--workers 2]
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
from data_free import one_thread
from lib.calibration_data import APART, calibration_batches, model_of
from lib.common import Table, claim, claims_table, data_folder, finish
from lib.networks import networks

import waterfill

LOSSES = {("ResNet-56", 1.45): 0.5, ("ResNet-56", 1.75): 0.2, ("ResNet-20", 1.6): 0.5}
"""Network, bits per weight of the whole file -> points of accuracy that may be lost."""
INPUTS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    options = parser.parse_args()
    jobs = [(*pair, number) for pair in LOSSES for number in range(options.sets)]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        rows = []
        for row in pool.map(measured, *zip(*jobs, strict=True)):
            print(f"{row[0]} at {row[1]:g} bits, set {row[2]}: {row[4]:.2f} points lost", flush=True)
            rows.append(row)
    columns = {"network": "", "bits": ".3g", "set": "d", "accuracy": ".2f", "points lost": ".2f", "divergence": ".3g"}
    tables = {"sets": Table("Several sets of calibration images", columns, rows), "claims": claims(rows)}
    partial = options.sets != parser.get_default("sets")
    finish("calibrations", tables, vars(options), partial=partial, shown=tables)


def measured(name: str, bits: float, number: int) -> list[Any]:
    """A row of the table."""
    folder = data_folder()
    network = networks()[name]
    state = network.state(folder)
    evaluate = network.prepare(folder, state, False)
    batches = calibration_batches(name, folder, INPUTS, first=APART * number)
    made = waterfill.compress(model_of(name, folder, state), batches, bits=bits)
    original, found = evaluate(state), evaluate(made.state_dict())
    return [name, bits, number, found.quality, original.quality - found.quality, found.divergence]


def claims(rows: list[list[Any]]) -> Table:
    """The mean loss against what may be lost."""
    made = []
    for (name, bits), most in LOSSES.items():
        lost = float(np.mean([row[4] for row in rows if (row[0], row[1]) == (name, bits)]))
        made.append(claim(f"{name} at {bits:g} bits, mean of the sets: points lost", lost, most, ".2f", at_most=True))
    return claims_table(made)


if __name__ == "__main__":
    main()
