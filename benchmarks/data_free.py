"""Quality without data and without training, at equal bytes: every reference network at 8 to 2 bits per weight of the file.

Each network is compressed, saved, read back from the file and measured on real data. Beside each result stands plain
rounding to nearest in groups of 64 (`rounding.py`): the widths whose bytes are next below and next above, and, in a table
of its own, our file at exactly the bytes of every width. The divergence is that of the outputs from the original's.

    python benchmarks/data_free.py [--quick] [--networks ResNet-20,LeNet-300-100] [--bits 4,2]
"""

import argparse
import functools
import math
import os
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import rounding
import torch
from common import Table, claim, claims_table, data_folder, finish
from data_free_tables import Run, bars, breakdown_table, equal_bytes_table, quality_table, runs_table, sizes_table
from networks import Evaluator, Network, State, networks

import waterfill
from waterfill.errors import BudgetError

AUTOMATIC = "Quantize()"
RECIPES = (AUTOMATIC, "Codebook()", "Quantize() + Prune() + LowRank()")
RATES = (8.0, 6.0, 5.0, 4.0, 3.0, 2.0)
BARS = {3.0: 90.9, 2.6: 90.0}
"""Bits per weight of the whole file -> the accuracy that ResNet-20 must reach (91.73 % uncompressed)."""


@dataclass(frozen=True)
class Job:
    """One measurement. recipe: its text, or "" for rounding to `width` bits, or "float32" for the original.

    bits: per weight of the whole file. width: of rounding, whose bytes are the budget where there is a recipe too.
    """

    network: str
    recipe: str
    bits: float | None = None
    width: int | None = None
    quick: bool = False


def main() -> None:
    options = parse_options()
    folder = data_folder()
    jobs = plan(options.networks, options.bits, options.quick)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        runs = []
        for done, run in enumerate(pool.map(functools.partial(measure, folder), jobs), 1):
            runs.append(run)
            print(f"[{done}/{len(jobs)}] {run.line()}", flush=True)
    partial = options.quick or set(options.networks) != set(networks()) or set(options.bits) != set(RATES)
    shown = ("quality", "equal_bytes", "sizes", "breakdown", "claims")
    finish("data_free", tables(runs, folder), vars(options), partial=partial, shown=shown)


def parse_options() -> argparse.Namespace:
    """Networks, rates and whether to use small subsets of the data."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small subsets of the data")
    parser.add_argument("--networks", default=",".join(networks()), help="names, separated by commas")
    parser.add_argument("--bits", default=",".join(f"{rate:g}" for rate in RATES), help="bits per weight, by commas")
    options = parser.parse_args()
    options.networks = options.networks.split(",")
    options.bits = [float(bits) for bits in options.bits.split(",")]
    unknown = sorted(set(options.networks) - set(networks()))
    if unknown:
        parser.error(f"no network {unknown[0]!r}; there are {', '.join(networks())}")
    return options


def one_thread() -> None:
    """Two processes on two cores: one thread each."""
    torch.set_num_threads(1)


def plan(names: Iterable[str], rates: Iterable[float], quick: bool) -> list[Job]:
    """All measurements, a network at a time, so that each process prepares its data once."""
    jobs = []
    for name in names:
        jobs.append(Job(name, "float32", quick=quick))
        jobs += [Job(name, "", width=width, quick=quick) for width in rounding.WIDTHS]
        jobs += [Job(name, AUTOMATIC, width=width, quick=quick) for width in rounding.WIDTHS]
        own = sorted({*rates, *(BARS if name == "ResNet-20" else ())}, reverse=True)
        jobs += [Job(name, recipe, bits=bits, quick=quick) for recipe in RECIPES for bits in own]
    return jobs


@functools.lru_cache(maxsize=2)
def prepared(folder: Path, name: str, quick: bool) -> tuple[Network, State, Evaluator]:
    """The network, its original tensors and what measures it; kept from job to job."""
    network = networks()[name]
    state = network.state(folder)
    return network, state, network.prepare(folder, state, quick)


def measure(folder: Path, job: Job) -> Run:
    """Do one job."""
    network, state, evaluate = prepared(folder, job.network, job.quick)
    weights = count(state)
    if job.recipe == "float32":
        size, restored, tally, seconds = sum(4 * t.numel() for t in state.values()), state, None, None
    elif not job.recipe:
        assert job.width
        size, restored, tally, seconds = rounding.size(state, job.width), rounding.rounded(state, job.width), None, None
    else:
        budget = rounding.size(state, job.width) if job.width else int((job.bits or 0) * weights / 8)
        try:
            size, restored, tally, seconds = through_a_file(state, job.recipe, budget)
        except BudgetError as error:
            return Run(job.network, job.recipe, job.bits, job.width, failed=str(error))
    found = evaluate(restored)
    return Run(
        job.network,
        job.recipe,
        job.bits,
        job.width,
        size=size,
        file_bits=8 * size / weights,
        tally=tally,
        quality=found.quality,
        divergence=found.divergence,
        seconds=seconds,
        better=network.better,
        resolution=network.resolution,
        metric=network.metric,
    )


def count(state: State) -> int:
    """Weights of a network as `waterfill` counts them: floating-point entries but the running statistics of norms."""
    running = ("running_mean", "running_var")
    return sum(t.numel() for name, t in state.items() if t.is_floating_point() and not name.endswith(running))


def through_a_file(state: State, recipe: str, budget: int) -> tuple[int, State, float, float]:
    """Bytes on disk, the state read back, the tally in bytes, and the seconds that compressing took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.wf"
        begin = time.perf_counter()
        compressed = waterfill.compress(state, recipe, size=budget)
        seconds = time.perf_counter() - begin
        compressed.save(path)
        blobs = sum(len(entry.blob) for entry in compressed.entries.values())
        ideal = sum(math.fsum(part.bits for part in entry.parts) for entry in compressed.entries.values()) / 8
        size = os.path.getsize(path)
        if size > budget:
            raise AssertionError(f"{recipe}: a file of {size} bytes for a budget of {budget}")
        return size, waterfill.load(path).state_dict(), ideal + size - blobs, seconds


def tables(runs: list[Run], folder: Path) -> dict[str, Table]:
    """Everything that is written; the claims are made of the rest."""
    found = {
        "quality": quality_table(runs, RECIPES),
        "equal_bytes": equal_bytes_table(runs, AUTOMATIC),
        "sizes": sizes_table(runs),
        "runs": runs_table(runs),
    }
    claims = [
        claim(f"ResNet-20 at {bits:g} bits of the whole file, accuracy in %", quality, bar, ".2f")
        for bits, bar, quality in bars(runs, AUTOMATIC, BARS)
    ]
    if any(run.network == "ResNet-20" for run in runs):
        state = networks()["ResNet-20"].state(folder)
        found["breakdown"] = breakdown_table(waterfill.compress(state, AUTOMATIC, bits=2.0))
        other = 100 - found["breakdown"].rows[0][2]
        claims.append(claim("ResNet-20 at 2 bits: all but the weight codes, % of the file", other, 8, ".2f", at_most=True))
    lost = [row for row in found["equal_bytes"].rows if row[-1] == "WORSE"]
    claims.append(claim("widths and networks at which plain rounding is better", len(lost), 0, "d", at_most=True))
    outside = [row for row in found["sizes"].rows if row[-1] is False]
    claims.append(claim("networks whose file is not within 1 % + 64 bytes of its tally", len(outside), 0, "d", at_most=True))
    return found | {"claims": claims_table(claims)}


if __name__ == "__main__":
    main()
