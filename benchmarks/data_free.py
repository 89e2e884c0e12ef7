"""Quality without data and without training: every reference network at 8 to 2 bits per weight of the whole file.

Each network is compressed, saved, read back from the file and measured on real data. Beside each result stands plain
rounding to nearest in groups of 64 (`rounding.py`): the widths whose bytes are next below and next above; and, in a
table of its own, our file at no more than the bytes of every width.

The automatic recipe comes first, the sum, by far the slowest, last; all but the automatic one at 4 to 2 bits only. What
is known is written as it comes, to the partial results; `--resume` takes over what these hold and measures the rest.
They become the results once nothing is missing.

Beside the automatic recipe stands the same with equal bits for every matrix (`lib/equal_bits.py`): what is assumed
without data must be worth more than to assume nothing. A language model takes part where it can be had
(`lib/language.py`).

    python benchmarks/data_free.py [--quick] [--resume] [--networks ResNet-20,ResNet-56] [--bits 4,2] [--recipe TEXT]
                                   [--claims] [--workers N]
"""

import argparse
import functools
import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from lib import equal_bits, language
from lib.common import RESULTS, Table, claim, claims_table, data_folder, finish
from lib.data_free_tables import Run, bars, breakdown_table, equal_bytes_table, quality_table, runs_table, sizes_table
from lib.equal_bits_tables import lost_to_equal_bits, shares_table
from lib.networks import Evaluator, Network, State, networks
from opponents import rounding

import waterfill
from waterfill.errors import BudgetError, WaterfillError

AUTOMATIC = "Quantize()"
EQUAL = equal_bits.RECIPE
RECIPES = (AUTOMATIC, EQUAL, "Codebook()", "Quantize() + Prune() + LowRank()")
RATES = (8.0, 6.0, 5.0, 4.0, 3.0, 2.0)
CLAIMED = (4.0, 3.0, 2.0)
"""Rates in bits per weight of the whole file: of the automatic recipe, and of all others."""
SHOWN = ("quality", "shares", "equal_bytes", "sizes", "breakdown", "claims")
PERPLEXITIES = {4.253: 32.0, 3.253: 51.0}
"""Bits per weight of the whole file -> the perplexity that the language model may have (29.30 uncompressed)."""
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
    if language.missing():
        print(f"{language.NAME} is left out: {language.missing()}")
    wanted = plan(options.networks, options.bits, options.recipe, options.quick, plain=not options.claims)
    known = earlier(options.quick) if options.resume else {}
    everything = plan(list(every_network()), list(RATES), list(RECIPES), False)
    jobs = [job for job in wanted if job not in known]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        runs = pool.map(functools.partial(measure, folder), jobs)
        for done, (job, run) in enumerate(zip(jobs, runs, strict=True), 1):
            known[job] = run
            print(f"[{done}/{len(jobs)}] {run.line()}", flush=True)
            if done % 5 == 0 or done == len(jobs):
                write(known, folder, options, partial=True, shown=())
    complete = all(job in known for job in everything)
    write(known, folder, options, partial=not complete, shown=SHOWN)


def write(
    known: dict[Job, Run], folder: Path, options: argparse.Namespace, *, partial: bool, shown: Iterable[str]
) -> None:
    """Tables of what is known, in the order of the full plan."""
    order = {name: place for place, name in enumerate([*networks(), language.NAME])}
    runs = sorted(known.values(), key=lambda run: order[run.network])
    made = tables(runs, None if partial else tallied(folder))
    finish("data_free", made, vars(options), partial=partial, shown=shown)


def tallied(folder: Path) -> Table:
    """What the bytes of a file are spent on."""
    return breakdown_table(waterfill.compress(networks()["ResNet-20"].state(folder), spec=AUTOMATIC, bits=2.0))


def earlier(quick: bool) -> dict[Job, Run]:
    """The measurements in the partial results, on as much of the data."""
    path = RESULTS / "data_free.partial.json"
    if not path.is_file():
        return {}
    table = json.loads(path.read_text("utf-8"))["tables"]["runs"]
    runs = [Run(**dict(zip(table["columns"], row, strict=True))) for row in table["rows"]]
    return {Job(run.network, run.recipe, run.bits, run.width, run.quick): run for run in runs if run.quick == quick}


def every_network() -> dict[str, Network]:
    """The reference networks, and the language model where it can be had."""
    return networks() | language.language_models()


def parse_options() -> argparse.Namespace:
    """Networks, rates, recipes, and whether to use small subsets of the data."""
    known = every_network()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small subsets of the data")
    parser.add_argument("--resume", action="store_true", help="keep what the partial results hold, measure the rest")
    parser.add_argument("--networks", default=",".join(known), help="names, separated by commas")
    parser.add_argument("--bits", default=",".join(f"{rate:g}" for rate in RATES), help="bits per weight, by commas")
    parser.add_argument("--recipe", action="append", help="a recipe; may be given several times")
    parser.add_argument("--claims", action="store_true", help="only what the claims about equal bits need")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args()
    options.networks = options.networks.split(",")
    options.bits = list(CLAIMED) if options.claims else [float(bits) for bits in options.bits.split(",")]
    options.recipe = [AUTOMATIC, EQUAL] if options.claims else options.recipe or list(RECIPES)
    unknown = sorted(set(options.networks) - set(known))
    if unknown:
        parser.error(f"no network {unknown[0]!r}; there are {', '.join(known)}")
    return options


def one_thread() -> None:
    """Two processes on two cores: one thread each."""
    torch.set_num_threads(1)


def plan(
    names: Sequence[str], rates: Sequence[float], recipes: Sequence[str], quick: bool, *, plain: bool = True
) -> list[Job]:
    """All measurements: originals, rounding if it is wanted, then recipe by recipe, a network at a time."""
    jobs = [Job(name, "float32", quick=quick) for name in names]
    small = [name for name in names if name != language.NAME]
    jobs += [Job(name, "", width=width, quick=quick) for name in small for width in (rounding.WIDTHS if plain else ())]
    for recipe in recipes:
        if language.NAME in names and recipe in (AUTOMATIC, EQUAL):
            jobs += [Job(language.NAME, recipe, bits=bits, quick=quick) for bits in language.RATES]
        for name in small:
            some = CLAIMED if recipe != AUTOMATIC and tuple(rates) == RATES else rates
            own = sorted({*some, *(BARS if name == "ResNet-20" else ())}, reverse=True)
            jobs += [Job(name, recipe, bits=bits, quick=quick) for bits in own]
            widths = rounding.WIDTHS if recipe == AUTOMATIC and plain else ()
            jobs += [Job(name, recipe, width=width, quick=quick) for width in widths]
    return jobs


@functools.lru_cache(maxsize=2)
def prepared(folder: Path, name: str, quick: bool) -> tuple[Network, State, Evaluator]:
    """The network, its original tensors and what measures it; kept from job to job."""
    network = every_network()[name]
    state = network.state(folder)
    return network, state, network.prepare(folder, state, quick)


def measure(folder: Path, job: Job) -> Run:
    """Do one job."""
    network, state, evaluate = prepared(folder, job.network, job.quick)
    run = Run(job.network, job.recipe, job.bits, job.width, job.quick)
    run = replace(run, better=network.better, resolution=network.resolution, metric=network.metric)
    try:
        size, restored, tally, seconds = compressed(state, job)
    except WaterfillError as error:
        return replace(run, failed=f"{type(error).__name__}: {error}")
    found = evaluate(restored)
    run = replace(run, size=size, file_bits=8 * size / count(state), tally=tally, seconds=seconds)
    return replace(run, quality=found.quality, divergence=found.divergence)


def compressed(state: State, job: Job) -> tuple[int, State, float | None, float | None]:
    """Bytes, the state that comes back, and for our files the tally in bytes and the seconds compressing took."""
    if job.recipe == "float32":
        return sum(4 * tensor.numel() for tensor in state.values()), state, None, None
    if job.width is not None and not job.recipe:
        return rounding.size(state, job.width), rounding.rounded(state, job.width), None, None
    budget = rounding.size(state, job.width) if job.width else int((job.bits or 0) * count(state) / 8)
    return through_a_file(state, job.recipe, budget)


def count(state: State) -> int:
    """Weights of a network as `waterfill` counts them: floating-point entries but the running statistics of norms."""
    running = ("running_mean", "running_var")
    return sum(t.numel() for name, t in state.items() if t.is_floating_point() and not name.endswith(running))


def through_a_file(state: State, recipe: str, budget: int) -> tuple[int, State, float, float]:
    """Bytes on disk, the state read back, the tally in bytes, and the seconds that compressing took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.wf"
        begin = time.process_time()  # one thread: what a quiet machine takes, on a busy one too
        equal = equal_bits.equal_bits(state) if recipe == EQUAL else None
        spec = AUTOMATIC if recipe == EQUAL else recipe
        model = waterfill.compress(state, spec=spec, size=budget, importance=equal)
        seconds = time.process_time() - begin
        model.save(path)
        blobs = sum(len(entry.blob) for entry in model.entries.values())
        ideal = sum(math.fsum(part.bits for part in entry.parts) for entry in model.entries.values()) / 8
        size = os.path.getsize(path)
        if size > budget:
            raise BudgetError(f"the file has {size} bytes for a budget of {budget}")
        return size, waterfill.load(path).state_dict(), ideal + size - blobs, seconds


def tables(runs: list[Run], breakdown: Table | None) -> dict[str, Table]:
    """Everything that is written; the claims are made of the rest."""
    found = {
        "quality": quality_table(runs, RECIPES),
        "shares": shares_table(runs, AUTOMATIC, EQUAL),
        "equal_bytes": equal_bytes_table(runs, AUTOMATIC),
        "sizes": sizes_table(runs),
        "runs": runs_table(runs),
    }
    claims = [
        claim(f"ResNet-20 at {bits:g} bits of the whole file, accuracy in %", quality, bar, ".2f")
        for bits, bar, quality in bars(runs, AUTOMATIC, BARS)
    ]
    for run in runs:
        if run.network == language.NAME and run.recipe == AUTOMATIC and run.bits in PERPLEXITIES and not run.failed:
            what = f"{run.network} at {run.bits:g} bits of the whole file, perplexity"
            claims.append(claim(what, run.quality, PERPLEXITIES[run.bits], ".2f", at_most=True))
    beaten = lost_to_equal_bits(found["shares"])
    claims.append(claim("networks and rates at which equal bits are better", len(beaten), 0, "d", at_most=True))
    if breakdown is not None:
        found["breakdown"] = breakdown
        other = 100 - found["breakdown"].rows[0][2]
        claims.append(claim("ResNet-20 at 2 bits: % of the file beside weight codes", other, 8, ".2f", at_most=True))
    lost = [row for row in found["equal_bytes"].rows if row[-1] == "WORSE"]
    claims.append(claim("widths and networks at which plain rounding is better", len(lost), 0, "d", at_most=True))
    failed = sum(bool(run.failed) for run in runs)
    claims.append(claim("budgets that were not met", failed, 0, "d", at_most=True))
    outside = [row for row in found["sizes"].rows if row[-1] is False]
    claims.append(
        claim("networks with a file not within 1 % + 64 bytes of its tally", len(outside), 0, "d", at_most=True)
    )
    return found | {"claims": claims_table(claims)}


if __name__ == "__main__":
    main()
