"""Post-training compression with a few hundred unlabelled inputs: every reference network at 4 to 1.5 bits per weight.

Each network is compressed with calibration inputs (`calibration_data.py`; 256, or as many as there are), saved, read
back from its file and measured on data that were not among them. Bits are those of the whole file. Beside each result
stand the opponents of `gptq.py` within the same bytes: GPTQ in groups of 128, the same with codes at their entropy, and
rounding to nearest in such groups. Then ResNet-20 and ResNet-56 at the rates of their claims, and the bits saved at
equal quality. How near the automatic recipe is to the best of several: `choice.py`.

What is known is written as it comes, to the partial results; `--resume` takes over what these hold and measures the
rest. They become the results once nothing is missing.

    python benchmarks/post_training.py [--quick] [--resume] [--networks ResNet-20,ResNet-56] [--bits 4,2]
"""

import argparse
import functools
import json
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from data_free import count, one_thread
from lib.calibration_data import SPARED, calibration_batches, model_of
from lib.common import RESULTS, Table, data_folder, finish
from lib.networks import Evaluator, Network, State, networks
from lib.post_training_tables import GPTQ, GPTQ_CODED, ORIGINAL, ROUNDING, Result, Shown, tables
from opponents import gptq
from torch import Tensor, nn

import waterfill
from waterfill.compression.post_training import DEFAULT_SPEC
from waterfill.errors import BudgetError, WaterfillError

OPPONENTS = (GPTQ, GPTQ_CODED, ROUNDING)
RATES = (4.0, 3.0, 2.5, 2.0, 1.5)
LOSSES = {
    "ResNet-20": {1.3: 2.0, 1.6: 0.5, 2.0: 0.2},
    "ResNet-56": {1.45: 0.5, 1.75: 0.2},
}
"""Network -> bits per weight of the whole file -> points of accuracy that may be lost."""
NEAR = (1.3, 1.45, 1.6, 1.75, 2.0)
"""Rates at which the networks of LOSSES are measured too."""
INPUTS = 256
WITHOUT_DATA = "GPT-2 attention"
SHOWN = ("quality", "headline", "saved", "paired", "calibration", "claims")


@dataclass(frozen=True)
class Job:
    """One measurement: a recipe or an opponent at so many bits per weight of the whole file; None for the original."""

    network: str
    method: str
    bits: float | None = None
    quick: bool = False


@dataclass(frozen=True)
class Place:
    """Where things are: the data, and what calibration found for the opponents, a folder for each network."""

    data: Path
    work: Path


def main() -> None:
    options = parse_options()
    wanted = plan(options)
    known = earlier(options.quick) if options.resume else {}
    everything = plan(parse_options([]))
    jobs = [job for job in wanted if job not in known]
    context = get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as work,
        ProcessPoolExecutor(options.workers, mp_context=context, initializer=one_thread) as pool,
    ):
        place = Place(data_folder(), Path(work))
        results = pool.map(functools.partial(measure, place), jobs)
        for done, (job, result) in enumerate(zip(jobs, results, strict=True), 1):
            known[job] = result
            print(f"[{done}/{len(jobs)}] {result.line()}", flush=True)
            if done % 10 == 0 or done == len(jobs):
                write(known, options, partial=True, shown=())
    complete = all(job in known for job in everything)
    write(known, options, partial=not complete, shown=SHOWN)


def write(known: dict[Job, Result], options: argparse.Namespace, *, partial: bool, shown: Iterable[str]) -> None:
    """Tables of what is known, in the order of the full plan."""
    order = {name: place for place, name in enumerate(networks())}
    results = sorted(known.values(), key=lambda result: order[result.network])
    made: dict[str, Table] = tables(results, Shown(options.automatic, LOSSES))
    finish("post_training", made, vars(options), partial=partial, shown=shown)


def earlier(quick: bool) -> dict[Job, Result]:
    """The measurements in the partial results, on as much of the data."""
    path = RESULTS / "post_training.partial.json"
    if not path.is_file():
        return {}
    table = json.loads(path.read_text("utf-8"))["tables"]["runs"]
    found = [Result(**dict(zip(table["columns"], row, strict=True))) for row in table["rows"]]
    return {Job(r.network, r.method, r.bits, r.quick): r for r in found if r.quick == quick}


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Networks, rates, and whether to use small subsets of the data; of the command line, or of `words`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small subsets of the data to measure on")
    parser.add_argument("--resume", action="store_true", help="keep what the partial results hold, measure the rest")
    parser.add_argument("--networks", default=",".join(networks()), help="names, separated by commas")
    parser.add_argument("--bits", default=",".join(f"{rate:g}" for rate in RATES), help="bits per weight, by commas")
    parser.add_argument("--automatic", default=DEFAULT_SPEC, help="the recipe that is compared with all others")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    options = parser.parse_args(words)
    options.networks = options.networks.split(",")
    options.bits = [float(bits) for bits in options.bits.split(",")]
    unknown = sorted(set(options.networks) - set(networks()))
    if unknown:
        parser.error(f"no network {unknown[0]!r}; there are {', '.join(networks())}")
    return options


def plan(options: argparse.Namespace) -> list[Job]:
    """All measurements, what matters most first: originals, the automatic recipe, opponents.

    Networks without data are in it once, to say so.
    """
    jobs = [Job(name, ORIGINAL, quick=options.quick) for name in options.networks]
    with_data = [name for name in options.networks if name != WITHOUT_DATA]
    for method in (options.automatic, *OPPONENTS):
        for name in with_data:
            near = NEAR if name in LOSSES and method == options.automatic else ()
            jobs += [Job(name, method, bits, options.quick) for bits in sorted({*options.bits, *near}, reverse=True)]
    return jobs


@dataclass(frozen=True)
class Prepared:
    """A network, its original tensors, its module, inputs to calibrate with, and what measures it."""

    network: Network
    state: State
    model: nn.Module | None
    batches: list[Tensor]
    evaluate: Evaluator


@functools.lru_cache(maxsize=2)
def prepared(data: Path, name: str, quick: bool) -> Prepared:
    """Everything about a network; kept from job to job."""
    network = networks(SPARED)[name]
    state = network.state(data)
    batches = calibration_batches(name, data, INPUTS)
    model = model_of(name, data, state) if batches else None
    return Prepared(network, state, model, batches, network.prepare(data, state, quick))


@functools.lru_cache(maxsize=1)
def opponent(place: Place, name: str, method: str) -> gptq.Opponent:
    """A plain quantizer of a network; GPTQ has the Hessians that `waterfill.calibrate` gathers in one pass."""
    known = prepared(place.data, name, True)
    if method == ROUNDING or known.model is None:
        return gptq.Opponent(known.state, {})
    return gptq.Opponent(known.state, waterfill.calibrate(known.model, known.batches), method == GPTQ_CODED)


def measure(place: Place, job: Job) -> Result:
    """Do one job."""
    known = prepared(place.data, job.network, job.quick)
    network = known.network
    result = Result(job.network, job.method, job.bits, job.quick, inputs=sum(len(batch) for batch in known.batches))
    result = replace(result, better=network.better, resolution=network.resolution, metric=network.metric)
    begin = time.process_time()  # one thread: what a quiet machine takes, on a busy one too
    try:
        size, restored = compressed(place, known, job)
    except (WaterfillError, ValueError) as error:
        return replace(result, failed=f"{type(error).__name__}: {error}")
    seconds = time.process_time() - begin
    found = known.evaluate(restored)
    result = replace(result, size=size, file_bits=8 * size / count(known.state), seconds=seconds)
    return replace(result, quality=found.quality, divergence=found.divergence, right=found.right.hex())


def compressed(place: Place, known: Prepared, job: Job) -> tuple[int, State]:
    """Bytes, and the state that comes back."""
    if job.bits is None:
        return sum(4 * tensor.numel() for tensor in known.state.values()), known.state
    budget = int(job.bits * count(known.state) / 8)
    if job.method in OPPONENTS:
        return opponent(place, job.network, job.method).within(budget)
    assert known.model is not None  # the plan has no budgets for networks without one
    options = waterfill.Options(cache=place.work / f"{job.network}-{os.getpid()}")
    made = waterfill.compress(known.model, known.batches, spec=job.method, size=budget, options=options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.wf"
        made.save(path)
        size = path.stat().st_size
        if size > budget:
            raise BudgetError(f"the file has {size} bytes for a budget of {budget}")
        return size, waterfill.load(path).state_dict()


if __name__ == "__main__":
    main()
