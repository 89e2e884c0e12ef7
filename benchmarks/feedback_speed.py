"""How long it takes to quantize a layer with feedback, by width, beside a plain blocked GPTQ in torch in the same run.

A Gaussian layer [width, width] whose inputs are correlated and differ in size; the price is that at which scalar codes
take about 2.5 bits. Whole calls are timed: factors of the Gram matrix, densities and scales included. GPTQ is that of
`benchmarks/gptq.py`, 3 bits and groups of 128. Memory is the peak of a process that loads layer and Gram matrix from
disk and quantizes, less what it held before, in matrices of the layer's size (float32).

    python benchmarks/feedback_speed.py [--widths 256 1024 4096] [--states 0 8 64 256] [--threads 1]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lib.common import Table, claim, claims_table, finish, timed
from opponents.gptq import quantize
from torch import Tensor

from waterfill import Importance, Quantize

WIDTHS = (256, 512, 1024, 2048, 4096)
STATES = (0, 8, 64, 256)
RATE, BITS = 0.03, 3


def layer(width: int) -> tuple[Tensor, Tensor]:
    """A weight and the Gram matrix of its inputs, both [width, width]."""
    torch.manual_seed(0)
    mixed = torch.eye(width) + torch.randn(width, width) / width**0.5
    inputs = torch.randn(2 * width, width) @ mixed * torch.exp(0.3 * torch.randn(width))
    return torch.randn(width, width) / width**0.5, inputs.T @ inputs / len(inputs)


def price_of(weight: Tensor, gram: Tensor) -> float:
    """At which scalar codes take about 2.5 bits."""
    return RATE * Importance(gram=gram).distortion(weight) / weight.numel()


def fitted(weight: Tensor, gram: Tensor, states: int, price: float) -> Any:
    """The part; nothing is known of the Gram matrix beforehand."""
    return Quantize(states=states).fit(weight, Importance(gram=gram), price)


def peak(folder: Path, states: int) -> float:
    """Of a process of its own, in matrices of the layer's size."""
    command = [sys.executable, __file__, "--inside", str(folder), "--states", str(states)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def inside(folder: Path, states: int) -> None:
    """Print by how much the peak of memory grows, in matrices."""
    torch.set_num_threads(1)
    weight, gram = (torch.from_numpy(np.load(folder / name)) for name in ("weight.npy", "gram.npy"))
    fitted(weight[:8, :8].clone(), gram[:8, :8].clone(), states, 1e-3)  # everything is imported
    price = RATE * Importance(gram=gram).distortion(weight[:64]) / (64 * len(gram))
    before = held("VmRSS")
    fitted(weight, gram, states, price)
    print((held("VmHWM") - before) / (4 * weight.numel()))


def held(what: str) -> int:
    """Bytes that this process holds (VmRSS) or has held at most (VmHWM); unlike getrusage, without its parent's."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])


def measure(width: int, states: list[int], runs: int) -> list[list[Any]]:
    """Rows of the table for one width."""
    weight, gram = layer(width)
    price = price_of(weight, gram)
    rows = []
    _, rival = timed(lambda: quantize(weight, gram, BITS), runs)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "weight.npy", weight.numpy())
        np.save(Path(folder) / "gram.npy", gram.numpy())
        for count in states:
            busy = time.process_time()
            part, seconds = timed(lambda count=count: fitted(weight, gram, count, price), runs)
            busy = (time.process_time() - busy) / runs
            bits = part.bits / weight.numel()
            rows.append([width, count, bits, seconds, busy, rival, rival / seconds, peak(Path(folder), count)])
            print(f"width {width}, {count} states: {seconds:.2f} s; GPTQ {rival:.2f} s", file=sys.stderr)
    return rows


def claims(rows: list[list[Any]]) -> Table:
    """What is promised of a layer 4096 wide."""
    found = {(row[0], row[1]): row for row in rows}
    made = []
    for states, most in ((0, 15.0), (8, 45.0)):
        if (4096, states) in found:
            row = found[4096, states]
            made.append(claim(f"4096 wide, {states or 'no'} states: seconds", row[3], most, ".1f", at_most=True))
            made.append(claim(f"4096 wide, {states or 'no'} states: matrices", row[7], 3.0, ".2f", at_most=True))
    if (4096, 0) in found:
        made.append(claim("scalar, times as fast as GPTQ", found[4096, 0][6], 8.0, ".1f"))
    return claims_table(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--states", type=int, nargs="+", default=STATES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=2, help="of which the fastest counts")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        inside(asked.inside, asked.states[0])
        return
    torch.set_num_threads(asked.threads)
    rows = [row for width in asked.widths for row in measure(width, list(asked.states), asked.runs)]
    columns = {"width": "d", "states": "d", "bits": ".2f", "seconds": ".2f", "of the cores": ".2f"}
    columns |= {"GPTQ, seconds": ".2f", "times as fast": ".1f", "memory, matrices": ".2f"}
    tables = {"speed": Table("Quantizing a layer with feedback", columns, rows), "claims": claims(rows)}
    partial = tuple(asked.widths) != WIDTHS or tuple(asked.states) != STATES
    options = {"threads": asked.threads, "runs": asked.runs}
    finish("feedback_speed", tables, options, partial=partial, shown=tables)


if __name__ == "__main__":
    main()
