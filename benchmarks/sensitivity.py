"""Sensitivity as it is predicted, against what is measured: one weight alone rounded to 2, 3, 4 and 8 bits.

Measured is the divergence from the original on inputs; predicted is the cost that the importance gives, measured with
the same inputs or assumed without any. "order" is Spearman's correlation over the weights of a network.

    python benchmarks/sensitivity.py [--networks ResNet-20] [--inputs 128]
"""

import argparse

import numpy as np
import torch
from lib.calibration_data import calibration_batches
from lib.common import Table, claim, claims_table, data_folder, data_module, finish
from lib.networks import networks
from torch import nn

from waterfill import report
from waterfill.report.rounding import BITS

BUILT = {"ResNet-20": ("CifarResNet", (20,)), "MobileNetV1 0.25": ("MobileNetV1", ())}
"""The network of each name: its class in the data folder, and the arguments."""
WANTED = 0.6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default=",".join(BUILT), help="names, separated by commas")
    parser.add_argument("--inputs", type=int, default=128, help="inputs of each network")
    options = parser.parse_args()
    rows = []
    for name in options.networks.split(","):
        rows += agreement(name, *losses(name, options.inputs))
        print(*rows[-len(BITS) :], sep="\n", flush=True)
    columns = {"network": "", "weights": "d", "bits": "d", "order, with inputs": ".2f", "order, assumed": ".2f"}
    columns |= {"predicted over measured, median": ".2f"}
    claims = []
    for name in options.networks.split(","):
        found = [row[3] for row in rows if row[0] == name and row[2] == 4]
        claims.append(claim(f"{name}, 4 bits: order of the weights as predicted with inputs", found[0], WANTED, ".2f"))
    tables = {"agreement": Table("Predicted and measured loss if one weight alone is rounded", columns, rows)}
    tables["claims"] = claims_table(claims)
    partial = any(getattr(options, key) != parser.get_default(key) for key in vars(options))
    finish("sensitivity", tables, vars(options), partial=partial, shown=tables)


def losses(name: str, count: int) -> tuple[report.Sensitivity, report.Sensitivity, report.Sensitivity]:
    """The losses measured, predicted with inputs, and assumed."""
    torch.set_num_threads(1)
    folder = data_folder()
    kind, arguments = BUILT[name]
    model: nn.Module = getattr(data_module(folder, "refmodels"), kind)(*arguments)
    model.load_state_dict(networks()[name].state(folder))
    batches = calibration_batches(name, folder, count)
    measured = report.sensitivity(model, batches, progress=False)
    predicted = report.sensitivity(model, batches, predicted=True, progress=False)
    return measured, predicted, report.sensitivity(model)


def agreement(
    name: str, measured: report.Sensitivity, predicted: report.Sensitivity, assumed: report.Sensitivity
) -> list[list[object]]:
    """A row for each number of bits."""
    by_name = [{row.name: row.losses for row in found.rows} for found in (measured, predicted, assumed)]
    names = [row.name for row in measured.rows if all(row.name in known for known in by_name)]
    rows: list[list[object]] = []
    for bits in BITS:
        own, with_inputs, without = (np.array([known[name][bits] for name in names]) for known in by_name)
        ratio = float(np.median(with_inputs / np.maximum(own, 1e-12)))
        rows.append([name, len(names), bits, order(with_inputs, own), order(without, own), ratio])
    return rows


def order(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation."""
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


if __name__ == "__main__":
    main()
