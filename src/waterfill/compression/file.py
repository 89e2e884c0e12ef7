"""Compress a checkpoint of any size: one weight in memory at a time for each thread, resumable after any crash."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from waterfill.arithmetic import by_own_arithmetic
from waterfill.assignment import Recipe
from waterfill.compression.allocation.budget import Budget
from waterfill.compression.allocation.fitter import FIXED_RATE_PRICE
from waterfill.compression.engine.engine import Engine
from waterfill.compression.engine.remote import RemoteWork
from waterfill.compression.estimate import seconds_of
from waterfill.compression.job import Job
from waterfill.compression.options import Options
from waterfill.compression.store import DirectoryStore
from waterfill.compression.task import Compression, in_memory, recipe_of, remarked
from waterfill.errors import BadInput, BudgetError, EngineError
from waterfill.model.compressed import table_row
from waterfill.recipe import DEFAULT_RECIPE
from waterfill.storage import FileWriter
from waterfill.storage.atomic import claimed
from waterfill.storage.paths import check_target
from waterfill.storage.work_directory import Journal

_MEMORY, _BYTES_AN_ENTRY = 300_000_000, 14  # at the peak: fixed, and for each entry of the weights being fitted


@dataclass(frozen=True)
class Summary:
    """The result of `compress_file`.

    Attributes:
        path: of the file.
        rows: as of `CompressedModel.table`.
        size: bytes of the file.
        original: bytes of the original tensors.
        weights: how many there are.
        seconds: wall time.
        aliases: tied names, each with the name that holds the parts.
        memory: bytes of the weights in packed layers, or in another format, where the budget counted these
            (`Options.runs`); else 0.
    """

    path: Path
    rows: list[dict[str, Any]]
    size: int
    original: int
    weights: int
    seconds: float
    aliases: dict[str, str]
    memory: int = 0

    @property
    def bits(self) -> float:
        """Bits of the whole file per weight."""
        return 8 * self.size / max(1, self.weights)

    @property
    def ratio(self) -> float:
        """Bytes of the original tensors over bytes of the file."""
        return self.original / self.size


@by_own_arithmetic
def compress_file(  # noqa: PLR0913 - budgets exclude one another, and each deserves its own word
    source: "str | Path",
    target: "str | Path",
    spec: Recipe = DEFAULT_RECIPE,
    *,
    ignore: Sequence[str] = (),
    bits: float | None = None,
    size: int | None = None,
    ratio: float | None = None,
    price: float | None = None,
    lossless: bool = False,
    format: str | None = None,
    options: Options = Options(),
    engine: Engine | None = None,
) -> Summary:
    """Compress a checkpoint of any size into a file, one weight in memory at a time for each thread, without inputs.

    Killed at any moment, the same call goes on from the work directory.

    Args:
        source: a `.safetensors` file, or the folder or index of a sharded checkpoint.
        target: the `.wf` file to write.
        spec: a spec or its text; or specs by pattern of names, as of `compress`.
        ignore: patterns of names of tensors that are kept bit for bit, as of `compress`.
        bits: per weight, of the whole file; 4 where no budget is given and the spec has no rate of its own.
        size: bytes of the file.
        ratio: bytes of the original tensors over bytes of the file.
        price: the water level itself, nats per bit.
        lossless: keep every tensor bit for bit; excludes budgets.
        format: the budget is that of a file to be exported, as of `compress`.
        options: progress, threads, work directory, and whether the target may be replaced.
        engine: where the weights are worked on, such as `waterfill.Dask("tcp://scheduler:8786")`, to the same bytes;
            None for threads of this process.

    Returns:
        The bytes, the time, and what became of every tensor.

    Raises:
        BadInput: a checkpoint that cannot be compressed: NaN, a missing shard, no tensors.
        CorruptFile: a checkpoint that is damaged.
        BadRecipe: a spec that has no meaning, a pattern that matches nothing, or budgets that exclude one another.
        BudgetError: a budget below the smallest file, whose bytes the message gives.
        OutputExists: the target is there and `options.force` is not set, or another process writes it.
        PlanMismatch: a work directory of another checkpoint, recipe, budget or version.
        EngineError: machines that do not do the work, and why; the same call goes on where it was.
        OSError: what the system reports, such as a full disk.

    Example:
        >>> summary = waterfill.compress_file("net.safetensors", "net.wf", ratio=10)
        >>> print(summary.size, summary.bits)
    """
    began = time.monotonic()
    path, options = Path(target), options.written_as(format)
    check_target(target, options.force)
    if engine is not None and not hasattr(engine, "answers"):
        raise EngineError(f"engine={engine!r} is no engine; give waterfill.Dask(ADDRESS), or an object with `answers`")
    job = Job.of(source, recipe_of(spec, ignore, lossless, options), Budget(bits, size, ratio, price), engine)
    folder = options.work or path.with_name(path.name + ".work")
    with claimed(path), Journal.claim(folder), options.shown() as settled:
        journal = Journal.begin(folder, job.fingerprint())
        work = _begun(job, journal, settled)
        written = _run(work, job.budget, journal, path)
    seconds = time.monotonic() - began
    totals = written, job.task.original, job.task.count, seconds
    return Summary(path, rows_of(work), *totals, job.checkpoint.aliases, work.memory)


def _begun(job: Job, journal: Journal, options: Options) -> Compression[DirectoryStore]:
    """The compression of a job with what is in its work directory. Raises PlanMismatch, EngineError."""
    weights, remote = job.task.weights, job.remote
    store = DirectoryStore(journal, weights, None if remote is None else remote.checksums)
    work = Compression(job.task, store, options)
    if remote is not None:
        work.run.ahead = RemoteWork(remote, weights, store, work.run.report)
    return work


def _run(work: Compression[DirectoryStore], budget: Budget, journal: Journal, path: Path) -> int:
    """Fit every weight and write the file; its bytes."""
    try:
        work.meet(budget)
    except (BudgetError, BadInput):
        journal.remove()  # going on with the same job would end the same way
        raise
    task, store = work.task, work.store
    lengths = [0 if (one := store.get(i)) is None else one.size for i in range(len(task.weights))]

    def file_bytes(notes: dict[str, Any]) -> int:
        return work.with_notes(notes).file_bytes(lengths)

    notes = remarked(task.notes, task.allowed(budget), file_bytes, work.counted(work.memory))
    with FileWriter(path, force=work.options.force) as out:
        for i, weight in enumerate(task.weights):
            out.add(weight.name, work.store.blob(i))
        written = out.finish(work.with_notes(notes).manifest())
    journal.remove()
    return written


def rows_of(work: Compression[Any]) -> list[dict[str, Any]]:
    """A row for each tensor, as of `CompressedModel.table`."""
    fitted = [(weight, work.store.get(i)) for i, weight in enumerate(work.weights)]
    return [table_row(w.name, w.layout, (f.words, w.reason), f.size, f.error) for w, f in fitted if f is not None]


@dataclass(frozen=True)
class Plan:
    """The result of `plan_file`: an estimate.

    Attributes:
        rows: as of `CompressedModel.table`, without parts and errors, and with the predicted distortion in nats.
        size: bytes of the file.
        original: bytes of the original tensors.
        weights: how many there are.
        price: the water level, nats per bit.
        memory: bytes at the peak, about.
        seconds: wall time at best and at worst.
    """

    rows: list[dict[str, Any]]
    size: int
    original: int
    weights: int
    price: float
    memory: int
    seconds: tuple[float, float]


@by_own_arithmetic
def plan_file(  # noqa: PLR0913 - as compress_file
    source: "str | Path",
    spec: Recipe = DEFAULT_RECIPE,
    *,
    ignore: Sequence[str] = (),
    bits: float | None = None,
    size: int | None = None,
    ratio: float | None = None,
    price: float | None = None,
    lossless: bool = False,
    options: Options = Options(),
) -> Plan:
    """Estimate what `compress_file` would do with the same arguments; nothing is written.

    Every tensor is measured on a sample of its entries, and a few weights are fitted to estimate the time.

    Args:
        source: as of `compress_file`, and so are the others.
        spec: a spec or its text, or specs by pattern of names.
        ignore: patterns of names of tensors that are kept bit for bit.
        bits: per weight, of the whole file.
        size: bytes of the file.
        ratio: bytes of the original tensors over bytes of the file.
        price: the water level itself, nats per bit.
        lossless: keep every tensor bit for bit.
        options: progress and threads.

    Returns:
        Bytes, memory and time, and a row for each tensor.

    Raises:
        BadInput, CorruptFile, BadRecipe, BudgetError: as `compress_file`.

    Example:
        >>> plan = waterfill.plan_file("net.safetensors", bits=3)
        >>> print(plan.size, plan.seconds)
    """
    job = Job.of(source, recipe_of(spec, ignore, lossless, options), Budget(bits, size, ratio, price))
    began = time.monotonic()
    weights, allowed = job.task.weights, job.task.allowed(job.budget)
    run = in_memory(job.task, replace(options, threads=options.workers)).run
    at = (job.budget.price or FIXED_RATE_PRICE) if allowed is None else run.price_for(allowed)
    points = [w.curve.at(at) for w in weights]
    measuring = 0.0 if allowed is None else time.monotonic() - began  # at a price given nothing is measured
    seconds = seconds_of(weights, at, options.workers, measuring)
    lengths = [int(p.bits / 8) for p in points]
    rows = [
        table_row(w.name, w.layout, ("", w.reason), length, None) | {"distortion": point.distortion}
        for w, length, point in zip(weights, lengths, points, strict=True)
    ]
    entries = [w.layout.entries for w in weights]
    memory = _MEMORY + _BYTES_AN_ENTRY * max(entries) * min(options.workers, len(entries))
    total = sum(lengths) + run.overhead(lengths)
    return Plan(rows, total, job.task.original, job.task.count, at, memory, seconds)
