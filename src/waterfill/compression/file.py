"""Compress a checkpoint of any size: one weight in memory at a time for each thread, resumable after any crash."""

import hashlib
import time
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from waterfill.arithmetic import by_own_arithmetic
from waterfill.compression.allocation.budget import Budget
from waterfill.compression.allocation.fitter import FIXED_RATE_PRICE
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.costs.assumptions import informed
from waterfill.compression.estimate import seconds_of
from waterfill.compression.options import Options
from waterfill.compression.store import DirectoryStore
from waterfill.compression.task import LOSSLESS, Compression, Task, in_memory, remarked, resolve
from waterfill.errors import BadInput, BudgetError
from waterfill.model.compressed import table_row
from waterfill.network.checkpoint import Checkpoint, open_checkpoint
from waterfill.network.kept import BINARY, why_kept
from waterfill.network.layout import RAW, layout_of
from waterfill.network.pruned import hidden_in
from waterfill.network.stored import IMPLIED
from waterfill.part import Spec
from waterfill.parts import Dense
from waterfill.recipe import DEFAULT_RECIPE, as_spec
from waterfill.storage import FileWriter
from waterfill.storage.atomic import claimed
from waterfill.storage.paths import check_target
from waterfill.storage.work_directory import Journal

_MEMORY, _BYTES_AN_ENTRY = 300_000_000, 14  # at the peak: beside the weights, and for each entry that is worked on


@dataclass(frozen=True)
class Summary:
    """What a job made. rows: as of `CompressedModel.table`. seconds: wall time. size and original: bytes."""

    path: Path
    rows: list[dict[str, Any]]
    size: int
    original: int
    weights: int
    seconds: float
    aliases: dict[str, str]

    @property
    def bits(self) -> float:
        """Bits of the whole file per weight."""
        return 8 * self.size / max(1, self.weights)

    @property
    def ratio(self) -> float:
        """Bytes of the original tensors over bytes of the file."""
        return self.original / self.size


@dataclass(frozen=True)
class Job:
    """A checkpoint and what is to be done to it."""

    checkpoint: Checkpoint
    task: Task
    budget: Budget

    @classmethod
    def of(cls, source: "str | Path", spec: "Spec | str", budget: Budget) -> "Job":
        """Read the headers and lay out every tensor; the spec `LOSSLESS` keeps every bit.

        Raises BadInput, CorruptFile, BadRecipe, BudgetError.
        """
        checkpoint = open_checkpoint(source)
        if not checkpoint.tensors:
            raise BadInput(f"{source} holds no tensors; there is nothing to compress")
        parsed = None if spec == LOSSLESS else as_spec(spec)
        metadata = {key: text for key, text in checkpoint.metadata.items() if (key, text) not in IMPLIED}
        notes: dict[str, Any] = {
            "recipe": LOSSLESS if parsed is None else repr(parsed),
            "original": checkpoint.original_bytes,
        }
        task = Task(
            _weights(checkpoint, parsed), checkpoint.aliases, notes | ({"metadata": metadata} if metadata else {})
        )
        return cls(checkpoint, task, resolve(budget, LOSSLESS if parsed is None else parsed))

    def fingerprint(self) -> dict[str, Any]:
        """What makes this job this job: another input, recipe, budget or version is another one. Of the input these are
        names, types and shapes; the values of each tensor are noted with what became of it (`DirectoryStore`)."""
        digest = hashlib.sha256()
        for stored in self.checkpoint.tensors.values():
            digest.update(f"{stored.name} {stored.dtype} {stored.shape}\n".encode())
        return {
            "input": digest.hexdigest(),
            "recipe": self.task.notes["recipe"],
            "budget": self.budget.given,
            "version": metadata.version("waterfill"),
        }


def _weights(checkpoint: Checkpoint, spec: Spec | None) -> list[Weight]:
    """A `Weight` for every tensor; without a spec each as it is, bit for bit. Raises BadInput."""
    weights = []
    masks = {} if spec is None else hidden_in({name: stored.load for name, stored in checkpoint.tensors.items()})
    for name, stored in checkpoint.tensors.items():
        kept = "" if spec is None else why_kept(name, stored.load())
        layout = layout_of(stored.shape, stored.dtype, RAW if spec is None or kept not in ("", BINARY) else None)
        mask = None if kept else masks.get(name)
        weights.append(Weight(name, layout, spec or Dense(format=LOSSLESS), stored.load, kept=kept, mask=mask))
        weights[-1].check()
    return weights if spec is None else informed(weights)


@by_own_arithmetic
def compress_file(  # noqa: PLR0913 - budgets exclude one another, and each deserves its own word
    source: "str | Path",
    target: "str | Path",
    spec: "Spec | str" = DEFAULT_RECIPE,
    *,
    bits: float | None = None,
    size: int | None = None,
    ratio: float | None = None,
    price: float | None = None,
    lossless: bool = False,
    options: Options = Options(),
) -> Summary:
    """Compress a `.safetensors` checkpoint (one file, or shards with an index) into the file `target`.

    Budgets as in `compress`. Killed at any moment, the same call goes on from the work directory.
    Raises BadInput, CorruptFile, BadRecipe, BudgetError, OutputExists, PlanMismatch, OSError.
    """
    began = time.monotonic()
    path = Path(target)
    check_target(target, options.force)
    job = Job.of(source, LOSSLESS if lossless else spec, Budget(bits, size, ratio, price))
    folder = options.work or path.with_name(path.name + ".work")
    with claimed(path), Journal.claim(folder):
        journal = Journal.begin(folder, job.fingerprint())
        work = Compression(job.task, DirectoryStore(journal, job.task.weights), options)
        written = _run(work, job.budget, journal, path)
    seconds = time.monotonic() - began
    return Summary(path, _rows(work), written, job.task.original, job.task.count, seconds, job.checkpoint.aliases)


def _run(work: Compression[DirectoryStore], budget: Budget, journal: Journal, path: Path) -> int:
    """Do the job and write the file, of so many bytes."""
    try:
        lengths = work.meet(budget).lengths
    except (BudgetError, BadInput):
        journal.remove()  # going on with the same job would end the same way
        raise
    task = work.task
    notes = remarked(task.notes, task.allowed(budget), lambda notes: work.with_notes(notes).file_bytes(lengths))
    with FileWriter(path, force=work.options.force) as out:
        for i, weight in enumerate(task.weights):
            out.add(weight.name, work.store.blob(i))
        written = out.finish(work.with_notes(notes).manifest())
    journal.remove()
    return written


def _rows(work: Compression[DirectoryStore]) -> list[dict[str, Any]]:
    """A row for each tensor, as of `CompressedModel.table`."""
    fitted = [(weight, work.store.get(i)) for i, weight in enumerate(work.weights)]
    return [table_row(w.name, w.layout, (f.words, w.reason), f.size, f.error) for w, f in fitted if f is not None]


@dataclass(frozen=True)
class Plan:
    """What a job would make. rows: name, shape, dtype, bytes, bits, reason, predicted error. size: bytes of the file.
    memory: bytes at the peak, about. seconds: wall time at best and at worst."""

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
    spec: "Spec | str" = DEFAULT_RECIPE,
    *,
    bits: float | None = None,
    size: int | None = None,
    ratio: float | None = None,
    price: float | None = None,
    lossless: bool = False,
    options: Options = Options(),
) -> Plan:
    """What `compress_file` would do with these arguments, from samples of every tensor; nothing is written.

    For the time a few weights are fitted.
    """
    job = Job.of(source, LOSSLESS if lossless else spec, Budget(bits, size, ratio, price))
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
