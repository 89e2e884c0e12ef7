"""How long it takes to calibrate and compress a whole network, beside a plain GPTQ of its layers in the same run.

Each network goes through `compress` with inputs at one budget, as a user would call it: nothing is known beforehand.
The opponent is that of `gptq.py`, 3 bits in groups of 128, its Hessians given: it neither calibrates nor shares out
bits. A pass is one run of the calibration inputs through the network, the unit in which calibration counts.

    python benchmarks/whole_speed.py [--networks ResNet-20,ResNet-56] [--threads 2]
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from lib.calibration_data import calibration_batches, model_of
from lib.common import Table, claim, claims_table, data_folder, finish
from lib.networks import networks
from opponents.gptq import hessian_of, quantize

import waterfill

BITS = {
    "ResNet-56": 1.75,
    "ResNet-20": 1.6,
    "SqueezeNet 1.1": 3.0,
    "MobileNetV1 0.25": 4.0,
    "Llama 260K": 3.0,
    "LSTM 2x128": 2.0,
    "LeNet-300-100": 1.5,
}
"""Network -> bits per weight of the whole file."""
INPUTS, STORIES = 256, 64  # of stories each is a batch of its own
WIDTH = 3
BOUND = 90.0
"""Seconds that ResNet-56 may take on two cores."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default=",".join(BITS), help="names, separated by commas")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.networks.split(","):
        rows.append(measured(name, BITS[name]))
        print(f"{name}: {rows[-1][3]:.1f} s", flush=True)
    columns = {"network": "", "bits": ".3g", "weights": ",d", "seconds": ".1f", "of the cores": ".1f"}
    columns |= {"one pass, s": ".2f", "in passes": ".0f", "GPTQ's layers alone, s": ".1f", "times that": ".1f"}
    tables = {"networks": Table("Calibrating and compressing whole networks", columns, rows)}
    seconds = {row[0]: row[3] for row in rows}
    if "ResNet-56" in seconds:
        found = claim("ResNet-56: seconds to calibrate and compress", seconds["ResNet-56"], BOUND, ".0f", at_most=True)
        tables["claims"] = claims_table([found])
    partial = list(seconds) != list(BITS) or options.threads != parser.get_default("threads")
    finish("whole_speed", tables, vars(options), partial=partial, shown=tables)


def measured(name: str, bits: float) -> list[Any]:
    """A row of the table."""
    folder = data_folder()
    state = networks()[name].state(folder)
    model = model_of(name, folder, state)
    batches = calibration_batches(name, folder, STORIES if name.startswith("Llama") else INPUTS)
    with torch.no_grad():
        once, _ = clocked(lambda: [model(batch) for batch in batches])
    wall, busy = clocked(lambda: waterfill.compress(model, batches, bits=bits))
    importance = waterfill.calibrate(model, batches)
    layers = {key: value.flatten(1) for key, value in state.items() if value.is_floating_point() and value.ndim >= 2}
    hessians = {key: hessian_of(importance.get(key), layer.shape[1]) for key, layer in layers.items()}
    plain, _ = clocked(lambda: [quantize(layer, hessians[key], WIDTH) for key, layer in layers.items()])
    weights = sum(value.numel() for value in model.parameters())
    return [name, bits, weights, wall, busy, once, wall / once, plain, wall / plain]


def clocked(action: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that an action takes, and seconds of the cores."""
    began, busy = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - began, time.process_time() - busy


if __name__ == "__main__":
    main()
