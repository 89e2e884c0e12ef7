"""Measures what `cluster_model` needs to know: seconds of cores, in this process, on small things."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from lib.cluster_model import Costs
from safetensors.torch import save_file

from waterfill import Dask
from waterfill.compression.allocation.budget import Budget
from waterfill.compression.engine.engine import Lost, answer
from waterfill.compression.engine.piece import FIT, INSPECT, MEASURE, Piece
from waterfill.compression.job import Job
from waterfill.compression.options import Options
from waterfill.compression.store import DirectoryStore
from waterfill.compression.task import Compression
from waterfill.storage import FileWriter
from waterfill.storage.work_directory import Journal

BITS = 3.0  # an entry
BLOB = 1 << 26  # bytes
PIECES = 300


class Canned:
    """An engine that says at once that a tensor is to be compressed."""

    slots = 1

    def answers(self, pieces: Sequence[str]) -> Iterator[tuple[int, str | Lost]]:
        for i, piece in enumerate(pieces):
            yield i, json.dumps([{"kept": "", "reason": ""}] * len(json.loads(piece)[3]))


def measured(folder: Path, width: int = 4096, small: int = 2000) -> Costs:
    """All costs, on a layer of this width, in bfloat16, and on so many small ones."""
    large = job_of(folder / "large.safetensors", {"large": torch.randn(width, width).bfloat16()})
    entries = width * width
    tiny = job_of(folder / "tiny.safetensors", {f"{i}": torch.randn(16, 56) for i in range(100)})
    inspect, measure, fit = (seconds(asking(large, do, folder)) for do in (INSPECT, MEASURE, FIT))
    fit_any = seconds(asking(tiny, FIT, folder)) / 100
    many = {f"{i}": torch.randn(128, 128) for i in range(small)}
    save_file(many, folder / "many.safetensors")
    opened = seconds(lambda: job_of(folder / "many.safetensors", None)) / small
    adopted, counted = of_caller(job_of(folder / "many.safetensors", None), folder)
    return Costs(
        inspect / entries, fit / entries, fit_any, measure, of_a_piece(), opened, adopted, counted, of_a_byte(folder)
    )


def seconds(action: Callable[[], object], runs: int = 3) -> float:
    """Seconds of cores of the fastest run."""
    best = float("inf")
    for _ in range(runs):
        began = time.process_time()
        action()
        best = min(best, time.process_time() - began)
    return best


def job_of(path: Path, tensors: dict[str, torch.Tensor] | None) -> Job:
    """The job of a checkpoint, which is written where there are tensors."""
    if tensors is not None:
        save_file(tensors, path)
    return Job.of(path, "Quantize()", Budget(bits=BITS), Canned())


def level_of(job: Job) -> int:
    """The k at whose price 4^k the first weight takes about BITS an entry."""
    weight = job.task.weights[0]
    return next(k for k in range(10, -40, -1) if weight.curve.at_grid(k).bits > BITS * weight.layout.entries)


def asking(job: Job, do: str, folder: Path) -> Callable[[], None]:
    """A function that has every weight of a job worked on in one piece; it raises RuntimeError if that fails."""
    store = DirectoryStore(Journal.begin(folder / "work", {}), [])
    assert job.remote is not None
    level = float(level_of(job))
    items = [replace(item, at=4.0**level if do == FIT else level) for item in job.remote.items]
    piece = Piece(do, items, store.place if do == FIT else None).text()

    def ask() -> None:
        said = answer(piece)
        if '{"error"' in said:
            raise RuntimeError(said)

    return ask


def of_caller(job: Job, folder: Path) -> tuple[float, float]:
    """Seconds to take over a blob, and to count the bytes of a file, for each weight."""
    weights = job.task.weights
    journal = Journal.begin(folder / "caller.work", {})
    store = DirectoryStore(journal, weights)
    note = {"words": "quantized", "error": 0.1, "bytes": 3000, "price": 1.0, "input": 1 << 31, "crc": 1 << 31}
    names = [f"{i}-{i:016x}.staged" for i in range(len(weights))]
    for name in names:
        (journal.folder / name).write_bytes(b"blob")
    took = seconds(lambda: [store.adopt(i, note, name) for i, name in enumerate(names)], runs=1)
    work = Compression(job.task, store, Options())
    counting = seconds(lambda: work.file_bytes([3000] * len(weights)))
    return took / len(weights), counting / len(weights)


def of_a_piece() -> float:
    """Seconds of this process, in which the scheduler is too, for a piece with nothing to do."""
    from distributed import LocalCluster

    empty = Piece(INSPECT, []).text()
    settings = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0", "memory_limit": 0}
    with LocalCluster(**settings) as machines, Dask(machines.scheduler_address, wait=300) as engine:
        list(engine.answers([empty]))
        return seconds(lambda: list(engine.answers([empty] * PIECES))) / PIECES


def of_a_byte(folder: Path) -> float:
    """Seconds to write a byte of a blob into the file."""
    blob = bytes(BLOB)

    def write() -> None:
        with FileWriter(folder / "written.wf", force=True) as out:
            out.add("weight", blob)

    return seconds(write) / BLOB
