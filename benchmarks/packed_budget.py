"""Budgets of memory (`Options(runs="packed")`) beside plain rounding to as many bytes and the smallest file.

Each network is rounded to codes of a few bits with a scale for each row, the form that other engines take. What its
layers hold packed, and 4 % for what else is in a file, is then the budget of a network that is to run packed, without
inputs and with 256 of them, and of the smallest file, whose codes take more in memory. Compared are bytes in memory,
bytes of the file, quality, and the divergence of the outputs from those of the original.

    python benchmarks/packed_budget.py [--networks LeNet-300-100,ResNet-20] [--bits 4,3]
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lib.calibration_data import calibration_batches, model_of
from lib.common import Table, claim, claims_table, data_folder, finish
from lib.networks import Evaluator, Network, networks

import waterfill
from waterfill import Options
from waterfill.runtime import table

NETWORKS = ("LeNet-300-100", "ResNet-20")
BITS = (4, 3)
INPUTS = 256
REST = 1.04
"""The budget over what plain rounding holds in memory: names, biases and norms are in it too."""
COLUMNS = {"network": "", "bits": "d", "method": "", "in memory, kB": ".1f", "file, kB": ".1f", "quality": ".2f"}
COLUMNS |= {"divergence, nats": ".4f", "s": ".0f"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names, separated by commas")
    parser.add_argument("--bits", default=",".join(map(str, BITS)), help="of plain rounding, by commas")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[list[Any]] = []
    for name in options.networks.split(","):
        network, folder = networks()[name], data_folder()
        measure = network.prepare(folder, network.state(folder), False)
        for bits in map(int, options.bits.split(",")):
            rows += compared(network, folder, measure, bits)
            write(rows, options, partial=len(rows) < 4 * len(NETWORKS) * len(BITS))


def write(rows: list[list[Any]], options: argparse.Namespace, *, partial: bool) -> None:
    """The table of what is known, and what it claims."""
    claims = []
    for words, wanted in (("without inputs", 1.0), ("with inputs", 0.5)):
        ratios = [row[6] / plain[6] for plain, row in pairs(rows, f"packed, {words}")]
        what = f"a budget of memory, {words}: most divergence over that of plain rounding at as many bytes"
        claims += [claim(what, max(ratios), wanted, ".2f", at_most=True)]
    over = [row[3] / plain[3] for plain, row in pairs(rows, "packed, with inputs")]
    claims += [
        claim("a budget of memory: most bytes in memory over the budget", max(over) / REST, 1.0, ".2f", at_most=True)
    ]
    tables = {"budgets": Table("At the same budget of bytes", COLUMNS, rows), "claims": claims_table(claims)}
    finish("packed_budget", tables, vars(options), partial=partial, shown=tables)


def pairs(rows: list[list[Any]], method: str) -> list[tuple[list[Any], list[Any]]]:
    """The rows of plain rounding, each with that of another method."""
    return [(rows[i], row) for i in range(0, len(rows), 4) for row in rows[i : i + 4] if row[2] == method]


def compared(network: Network, folder: Path, measure: Evaluator, bits: int) -> list[list[Any]]:
    """The rows of one network."""
    state = network.state(folder)
    model, inputs = model_of(network.name, folder, state), calibration_batches(network.name, folder, INPUTS)
    quiet, packed = Options(progress=False), Options(progress=False, runs="packed")
    plain, seconds = timed(lambda: waterfill.compress(model, spec=f"Quantize(bits={bits})", options=quiet))
    size = int(REST * held(plain, network.name, folder, state))
    ways: dict[str, Callable[[], waterfill.CompressedModel]] = {
        "packed, without inputs": lambda: waterfill.compress(model, size=size, options=packed),
        "packed, with inputs": lambda: waterfill.compress(model, inputs, size=size, options=packed),
        "smallest file, with inputs": lambda: waterfill.compress(model, inputs, size=size, options=quiet),
    }
    made = {"plain rounding": (plain, seconds)} | {way: timed(make) for way, make in ways.items()}
    rows = []
    for way, (small, seconds) in made.items():
        found = measure(small.state_dict())
        memory = held(small, network.name, folder, state) / 1e3
        rows.append([network.name, bits, way, memory, small.size / 1e3, found.quality, found.divergence, seconds])
        print(*rows[-1], flush=True)
    return rows


def timed(make: Callable[[], waterfill.CompressedModel]) -> tuple[waterfill.CompressedModel, float]:
    """What is made, and the seconds of the processor that it took."""
    began = time.process_time()
    return make(), time.process_time() - began


def held(made: waterfill.CompressedModel, name: str, folder: Path, state: Any) -> int:
    """Bytes of the weights of packed layers."""
    return sum(row["bytes"] for row in table(waterfill.pack(made, model_of(name, folder, state))))


if __name__ == "__main__":
    main()
