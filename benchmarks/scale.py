"""A checkpoint of 1 TB on 100 machines: how long it takes, by a simulation of the work with measured costs.

The costs of a core and of the caller are measured here, on small things, in seconds of cores; the network, the storage
and the number of machines that die are assumed, and stand among the options. The pieces and their order are those that
waterfill makes. That the model is right is checked where it can be, on the checkpoint and workers of workers.py.

    python benchmarks/scale.py [--machines 100] [--threads 16]
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from lib.cluster_costs import measured
from lib.cluster_model import Costs, Machines, Network, phases
from lib.common import RESULTS, Table, claim, claims_table, finish

MACHINES, THREADS = 100, 16
LINK, STORAGE = 1.25e9, 20e9  # bytes a second: 10 Gbit Ethernet, and a parallel file system
LOCAL = 2e9  # bytes a second, of the disk of a single machine
DEATHS = 5
ROUNDS, REFITS = 4, 3  # prices at which curves are measured, fits of the largest weight to meet the size: as observed
DENSE = Network(  # as a dense language model of 500 billion weights would be: 130 blocks, 16,384 wide
    "dense, bfloat16, 1.0 TB",
    2,
    [(260, 16384, 16384), (260, 1024, 16384), (390, 53248, 16384), (2, 128256, 16384), (261, 1, 16384)],
)
SPARSE = Network(  # as a mixture of 384 experts in each of 61 blocks, with a scale for each tile of 128 x 128
    "experts, float8, 1.1 TB",
    1,
    [(70272, 2048, 7168), (70272, 16, 56), (305, 7168, 7168), (2, 163840, 7168), (500, 1, 7168)],
)
SMALL = Network("16 layers of 4096 x 4096, float32, 1.1 GB", 4, [(16, 4096, 4096)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--machines", type=int, default=MACHINES)
    parser.add_argument("--threads", type=int, default=THREADS, help="of each machine")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        costs = measured(Path(name))
    counts = (1, 10, options.machines)
    rows, claims = [], []
    for network in (DENSE, SPARSE):
        found = [phases(network, machines_of(count, options.threads), costs, ROUNDS, REFITS) for count in counts]
        rows += [[network.name, stage, *(one[stage] for one in found)] for stage in found[0]]
        totals = [sum(one.values()) for one in found]
        rows.append([network.name, "in all", *totals])
        name = f"{network.name}, {counts[-1]} machines: hours"
        claims.append(claim(name, totals[-1] / 3600, 1.0, ".2f", at_most=True))
    tables = {
        "stages": Table(
            f"Seconds of each stage, by the number of machines of {options.threads} threads each",
            {"checkpoint": "", "stage": ""} | {f"{count} machines" if count > 1 else "1": ",.0f" for count in counts},
            rows,
        ),
        "costs": costs_table(costs),
        "check": check(costs),
        "claims": claims_table(claims),
    }
    partial = vars(options) != {"machines": MACHINES, "threads": THREADS}
    finish("scale", tables, vars(options) | assumed(), partial=partial, shown=tables)


def machines_of(count: int, threads: int) -> Machines:
    """So many machines on a shared storage, of which some die; one alone has a disk."""
    return Machines(count, threads, LINK, STORAGE, DEATHS) if count > 1 else Machines(1, threads, LOCAL, LOCAL)


def assumed() -> dict[str, Any]:
    """What is not measured."""
    return {"link, GB/s": LINK / 1e9, "storage, GB/s": STORAGE / 1e9, "machines that die": DEATHS}


def costs_table(costs: Costs) -> Table:
    """The costs in units that can be read."""
    rows = [
        ["a core fits, M weights/s", 1e-6 / costs.fit],
        ["a core inspects, M weights/s", 1e-6 / costs.inspect],
        ["a core fits a tiny weight, ms", 1e3 * costs.fit_any],
        ["a core measures a curve at a price, ms", 1e3 * costs.measure],
        ["the caller sends a piece and reads its answer, ms", 1e3 * costs.piece],
        ["the caller opens a weight, ms", 1e3 * costs.opened],
        ["the caller takes over a blob, ms", 1e3 * costs.adopted],
        ["the caller counts the bytes of the file, microseconds a weight", 1e6 * costs.counted],
        ["the caller writes the file, GB/s", 1e-9 / costs.written],
    ]
    return Table("Measured costs, in seconds of cores", {"cost": "", "found": ",.2f"}, rows)


def check(costs: Costs) -> Table:
    """The model of the two workers of workers.py beside what was measured there, in seconds of cores."""
    found = phases(SMALL, Machines(2, 1, 1e12, 1e12), costs, ROUNDS, REFITS)
    serial = ("fit the largest again", "open: headers, tied weights", "count bytes", "write the file")
    modelled = sum(seconds * (1 if stage in serial else 2) for stage, seconds in found.items())
    whole = RESULTS / "workers.json"  # partial runs are of other checkpoints
    rows = json.loads(whole.read_text("utf-8"))["tables"]["rounds"]["rows"] if whole.is_file() else []
    seen = min((row[3] for row in rows if row[0] == "dask"), default=None)
    return Table(
        f"The model beside a measurement: {SMALL.name}, on two workers, seconds of cores",
        {"model": ".1f", "measured": ".1f"},
        [[modelled, seen]],
    )


if __name__ == "__main__":
    main()
