"""A packed language model under `torch.compile`: a token of SmolLM2-135M with a static cache, beside float32.

The folder of the network is named by `WATERFILL_SMOLLM2`; it is compressed without inputs to 4 bits of the whole file.
Networks take turns, compiled and not, and the shortest run counts, in seconds of the processor, on one thread.

    python benchmarks/compiled.py [--inputs 8] [--work FOLDER]
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lib import generation as g
from lib import language
from lib.common import Table, claim, claims_table, finish
from lib.turns import in_turns

import waterfill

ROUNDS, SECONDS = 5, 100.0
SHORT, LONG, MOST = 2, 26, 128
COLUMNS = {"weights": "", "forward pass": "", "ms a token": ".1f", "times float32": ".2f", "seconds to compile": ".0f"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=8, help="bits of the inputs of packed layers")
    parser.add_argument("--work", type=Path, help="keeps the file that is made, for a later run")
    options = parser.parse_args()
    folder = language.folder()
    torch.set_num_threads(1)
    with g.working(options.work) as work:
        file = work / "4 bits.wf"
        if not file.is_file():
            waterfill.compress_file(folder / "model.safetensors", file, bits=4)
        packed = waterfill.pack(file, g.network(folder), input_bits=options.inputs)
    nets = {"float32": g.network(folder), f"4 bits packed, {options.inputs}-bit inputs": packed}
    rows = measured(nets, g.prompt(folder))
    at = {(row[0] == "float32", row[1]): row for row in rows}
    what = f"4 bits, {options.inputs}-bit inputs, compiled: times as fast as float32, compiled"
    tables = {"tokens": Table("A token of SmolLM2-135M, static cache, one thread", COLUMNS, rows)}
    tables["claims"] = claims_table([claim(what, at[False, "compiled"][3], 4.0, ".2f")])
    partial_run = options.inputs != parser.get_default("inputs")
    finish("compiled", tables, {"inputs": options.inputs}, partial=partial_run, shown=tables)


def measured(nets: dict[str, Any], inputs: torch.Tensor) -> list[list[Any]]:
    """Rows of the networks as they are and compiled."""
    loops = {}
    for name, net in nets.items():
        loops[name, "as it is"] = g.Loop(net, inputs, MOST, compiled=False)
        loops[name, "compiled"] = g.Loop(net, inputs, MOST)
        print(name, "compiled in", loops[name, "compiled"].seconds_to_compile, flush=True)
    actions = {"/".join(key) + f"/{n}": partial(loop, n) for key, loop in loops.items() for n in (SHORT, LONG)}
    times = in_turns(actions, ROUNDS, SECONDS)
    each = {
        key: (times["/".join(key) + f"/{LONG}"] - times["/".join(key) + f"/{SHORT}"]) / (LONG - SHORT) for key in loops
    }
    return [
        [name, how, 1e3 * seconds, each["float32", how] / seconds, loops[name, how].seconds_to_compile]
        for (name, how), seconds in each.items()
    ]


if __name__ == "__main__":
    main()
