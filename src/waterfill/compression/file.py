"""Compress a checkpoint of any size: one weight in memory at a time for each thread, resumable after any crash."""

import hashlib
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from waterfill.arithmetic import by_own_arithmetic
from waterfill.compression.allocation.budget import Budget, unused
from waterfill.compression.allocation.fitter import FIXED_RATE_PRICE, Fitter
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.costs.assumptions import informed
from waterfill.compression.estimate import seconds_of
from waterfill.compression.options import Options
from waterfill.compression.task import LOSSLESS, resolve
from waterfill.dtypes import octets
from waterfill.errors import BadInput, BudgetError, PlanMismatch
from waterfill.model.compressed import count_weights, table_row
from waterfill.model.entry import row_of
from waterfill.network.checkpoint import Checkpoint, open_checkpoint
from waterfill.network.kept import BINARY, why_kept
from waterfill.network.layout import RAW, layout_of
from waterfill.network.pruned import hidden_in
from waterfill.network.stored import IMPLIED
from waterfill.part import Spec
from waterfill.parts import Dense
from waterfill.recipe import DEFAULT_RECIPE, as_spec
from waterfill.storage import FileWriter, size_of
from waterfill.storage.atomic import claimed
from waterfill.storage.manifest import Manifest
from waterfill.storage.paths import check_target
from waterfill.storage.work_directory import Journal


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
    """A checkpoint, what is to be done to it, and its weights in order. remarks: what the notes of the file add."""

    checkpoint: Checkpoint
    spec: Spec
    budget: Budget
    lossless: bool
    weights: list[Weight]
    remarks: dict[str, str]

    @classmethod
    def of(cls, source: "str | Path", spec: "Spec | str", budget: Budget, lossless: bool) -> "Job":
        """Read the headers and lay out every tensor. Raises BadInput, CorruptFile, BadRecipe, BudgetError."""
        checkpoint = open_checkpoint(source)
        if not checkpoint.tensors:
            raise BadInput(f"{source} holds no tensors; there is nothing to compress")
        parsed = Dense(format="lossless") if lossless else as_spec(spec)
        masks = {} if lossless else hidden_in({name: stored.load for name, stored in checkpoint.tensors.items()})
        weights = []
        for name, stored in checkpoint.tensors.items():
            kept = "" if lossless else why_kept(name, stored.load())
            layout = layout_of(stored.shape, stored.dtype, RAW if lossless or kept not in ("", BINARY) else None)
            mask = None if kept else masks.get(name)
            weights.append(Weight(name, layout, parsed, stored.load, kept=kept, mask=mask))
            weights[-1].check()
        known = weights if lossless else informed(weights)
        return cls(checkpoint, parsed, resolve(budget, LOSSLESS if lossless else parsed), lossless, known, {})

    @property
    def notes(self) -> dict[str, Any]:
        """What the file says of how it was made."""
        text = LOSSLESS if self.lossless else repr(self.spec)
        metadata = {key: text for key, text in self.checkpoint.metadata.items() if (key, text) not in IMPLIED}
        told = {"metadata": metadata} if metadata else {}
        return {"recipe": text, "original": self.checkpoint.original_bytes, **told, **self.remarks}

    @property
    def size(self) -> int | None:
        """The bytes that the file may have; None where a price decides."""
        return self.budget.file_bytes(self.count, self.checkpoint.original_bytes)

    @property
    def count(self) -> int:
        """Entries that count as weights."""
        return count_weights((w.name, w.layout) for w in self.weights)

    def fingerprint(self) -> dict[str, Any]:
        """What makes this job this job: another input, recipe, budget or version is another one. Of the input these are
        names, types and shapes; the values of each tensor are noted with what became of it (`Records`)."""
        digest = hashlib.sha256()
        for stored in self.checkpoint.tensors.values():
            digest.update(f"{stored.name} {stored.dtype} {stored.shape}\n".encode())
        return {
            "input": digest.hexdigest(),
            "recipe": self.notes["recipe"],
            "budget": self.budget.given,
            "version": metadata.version("waterfill"),
        }

    def manifest(self, words: Sequence[str]) -> dict[str, Any]:
        """The manifest of the file, given what every tensor became."""
        rows = [row_of(w.layout, said, w.reason) for w, said in zip(self.weights, words, strict=True)]
        return Manifest(rows, self.checkpoint.aliases, self.notes).pack()

    def file_bytes(self, words: Sequence[str], lengths: Sequence[int]) -> int:
        """Exact bytes of the file of blobs of these lengths."""
        names = [w.name for w in self.weights]
        return size_of(self.manifest(words), dict(zip(names, lengths, strict=True)))

    def run(self, records: "Records", options: Options) -> Fitter:
        """What will meet the budget."""

        def overhead(lengths: Sequence[int]) -> int:
            return self.file_bytes(records.words(), lengths) - sum(lengths)

        return Fitter(self.weights, records.fit, overhead, options.progress, options.workers)

    def with_remark(self, words: Sequence[str], lengths: Sequence[int]) -> "Job":
        """The job; where the file leaves much of its budget, its notes say so, if that fits."""
        remark = None if self.size is None else unused(self.size, self.file_bytes(words, lengths))
        if self.size is None or remark is None:
            return self
        remarked = replace(self, remarks={"budget": remark})
        return remarked if remarked.file_bytes(words, lengths) <= self.size else self


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
    job = Job.of(source, spec, Budget(bits, size, ratio, price), lossless)
    work = options.work or path.with_name(path.name + ".work")
    with claimed(path), Journal.claim(work):
        records, written = _run(job, Journal.begin(work, job.fingerprint()), path, options)
    seconds = time.monotonic() - began
    original = job.checkpoint.original_bytes
    return Summary(path, records.rows(), written, original, job.count, seconds, job.checkpoint.aliases)


def _run(job: Job, journal: Journal, path: Path, options: Options) -> tuple["Records", int]:
    """Do the job and write the file; what is known of each weight, and the bytes of the file."""
    records = Records(job, journal)
    try:
        ledger = job.run(records, options).meet(job.budget, job.checkpoint.original_bytes)
    except (BudgetError, BadInput):
        journal.remove()  # going on with the same job would end the same way
        raise
    with FileWriter(path, force=options.force) as out:
        for i, weight in enumerate(job.weights):
            out.add(weight.name, journal.blob(i))
        words = records.words()
        written = out.finish(job.with_remark(words, ledger.lengths).manifest(words))
    journal.remove()
    return records, written


class Records:
    """What is known of each weight's blob in the journal while a job runs. Without a journal no blob is kept.

    Raises PlanMismatch for a blob of other values than the checkpoint has now.
    """

    def __init__(self, job: Job, journal: Journal | None) -> None:
        self._job = job
        self._journal = journal
        self._notes = {} if journal is None else journal.finished(len(job.weights))
        for i, note in self._notes.items():
            if note.get("input") != _digest(job.weights[i].load()):
                raise PlanMismatch(
                    f"the work directory belongs to another job: tensor {job.weights[i].name!r} has other values now. "
                    "Put the checkpoint back, or delete the folder to begin anew"
                )

    def fit(self, i: int, price: float) -> float:
        """Fit weight i and keep its blob; real bits. What was last found at the same price, by an earlier run perhaps,
        is taken as it is."""
        if self._notes.get(i, {}).get("price") != price:
            weight = self._job.weights[i]
            read = _digest(weight.load())
            entry = weight.fit(price)
            note = {"words": entry.words, "error": entry.error, "bytes": len(entry.blob), "price": price, "input": read}
            if self._journal is not None:
                self._journal.put(i, entry.blob, note)
            self._notes[i] = note
        return 8.0 * self._notes[i]["bytes"]

    def words(self) -> list[str]:
        """What each tensor became, as far as is known."""
        return [self._notes.get(i, {}).get("words", "quantized") for i in range(len(self._job.weights))]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each tensor, as of `CompressedModel.table`."""
        return [
            table_row(
                w.name, w.layout, (self._notes[i]["words"], w.reason), self._notes[i]["bytes"], self._notes[i]["error"]
            )
            for i, w in enumerate(self._job.weights)
        ]


def _digest(tensor: Tensor) -> int:
    """Tells the values of a tensor from others, quickly."""
    return zlib.crc32(octets(tensor).numpy().data)


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
    job = Job.of(source, spec, Budget(bits, size, ratio, price), lossless)
    began = time.monotonic()
    run = job.run(Records(job, None), options)
    at = (job.budget.price or FIXED_RATE_PRICE) if job.size is None else run.price_for(job.size)
    points = [w.curve.at(at) for w in job.weights]
    measuring = 0.0 if job.size is None else time.monotonic() - began  # at a price given nothing is measured
    seconds = seconds_of(job.weights, at, options.workers, measuring)
    lengths = [int(p.bits / 8) for p in points]
    rows = [
        table_row(w.name, w.layout, ("", w.reason), length, None) | {"distortion": point.distortion}
        for w, length, point in zip(job.weights, lengths, points, strict=True)
    ]
    entries = [w.layout.entries for w in job.weights]
    memory = 300_000_000 + 14 * max(entries) * min(options.workers, len(entries))
    total = sum(lengths) + run.overhead(lengths)
    return Plan(rows, total, job.checkpoint.original_bytes, job.count, at, memory, seconds)
