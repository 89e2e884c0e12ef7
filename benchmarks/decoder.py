"""A decoder like Llama of 332 million random weights that runs packed: tokens a second beside float32 and bfloat16.

All codes have 4 bits, with a scale for each row. Networks take turns, and the shortest run counts, in seconds of the
processor, on one thread. transformers must be installed.

    python benchmarks/decoder.py [--layers 10] [--work FOLDER]
"""

import argparse
import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lib import generation as g
from lib.common import Table, claim, claims_table, finish
from lib.turns import in_turns

import waterfill
from waterfill.runtime.speed import memory_of

ROUNDS, SECONDS = 5, 200.0
SHORT, LONG = 1, 17
COLUMNS = {"weights": "", "tokens/s": ".1f", "times float32": ".2f", "times bfloat16": ".2f", "weights, MB": ".0f"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=10, help="of the decoder")
    parser.add_argument("--work", type=Path, help="keeps the file that is made, for a later run")
    options = parser.parse_args()
    if importlib.util.find_spec("transformers") is None:
        print("skipped: needs the package transformers")
        sys.exit(0)
    torch.set_num_threads(1)
    nets = {"float32": g.decoder(options.layers), "bfloat16": g.decoder(options.layers, torch.bfloat16)}
    with g.working(options.work) as work:
        file = work / f"random, {options.layers} layers.wf"
        if not file.is_file():
            waterfill.compress(nets["float32"], spec="Quantize(bits=4)").save(file)
        for size in (16, 8):
            name = f"4 bits packed, {size}-bit inputs"
            nets[name] = waterfill.pack(file, g.decoder(options.layers), input_bits=size)
    rows = measured(nets)
    quick = next(row for row in rows if row[0] == "4 bits packed, 8-bit inputs")
    found = [claim("4 bits, 8-bit inputs: times as fast as float32", quick[2], 5.0, ".2f")]
    found.append(claim("4 bits, 8-bit inputs: times as fast as bfloat16", quick[3], 2.5, ".2f"))
    tables = {"generation": Table("A decoder of random weights, one sequence", COLUMNS, rows)}
    tables["claims"] = claims_table(found)
    own = {"layers": options.layers}
    finish("decoder", tables, own, partial=options.layers != parser.get_default("layers"), shown=tables)


def measured(nets: dict[str, Any]) -> list[list[Any]]:
    """Rows of the networks."""
    inputs = torch.arange(1, 9, dtype=torch.int64)[None]
    runs = {name: partial(g.generated, net, inputs) for name, net in nets.items()}
    times = in_turns(
        {f"{name}/{n}": partial(run, n) for name, run in runs.items() for n in (SHORT, LONG)}, ROUNDS, SECONDS
    )
    each = {name: (times[f"{name}/{LONG}"] - times[f"{name}/{SHORT}"]) / (LONG - SHORT) for name in runs}
    return [
        [name, 1 / own, each["float32"] / own, each["bfloat16"] / own, memory_of(nets[name]) / 1e6]
        for name, own in each.items()
    ]


if __name__ == "__main__":
    main()
