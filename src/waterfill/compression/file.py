"""Compress a checkpoint of any size: one weight in memory at a time for each thread, resumable after any crash."""

import hashlib
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from waterfill import recipe
from waterfill.compression.allocation.budget import Target
from waterfill.compression.allocation.fitter import FIXED_RATE_PRICE, Run
from waterfill.compression.allocation.weight import SAMPLE, Weight
from waterfill.compression.options import Options
from waterfill.compression.task import resolve
from waterfill.dtypes import octets
from waterfill.errors import BadInput, BudgetError, OutputExists, PlanMismatch
from waterfill.model.compressed import count_weights, table_row
from waterfill.network.checkpoint import Checkpoint, open_checkpoint
from waterfill.network.kept import BINARY, why_kept
from waterfill.network.layout import RAW, layout_of
from waterfill.network.pruned import hidden_in
from waterfill.network.stored import IMPLIED
from waterfill.part import Spec
from waterfill.storage import FileWriter, manifest, size_of
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
    """A checkpoint, what is to be done to it, and its weights in order."""

    checkpoint: Checkpoint
    spec: Spec
    target: Target
    lossless: bool
    weights: Sequence[Weight]

    @classmethod
    def of(cls, source: "str | Path", spec: "Spec | str", target: Target, lossless: bool) -> "Job":
        """Read the headers and lay out every tensor. Raises BadInput, CorruptFile, BadRecipe, BudgetError."""
        checkpoint = open_checkpoint(source)
        if not checkpoint.tensors:
            raise BadInput(f"{source} holds no tensors; there is nothing to compress")
        parsed = recipe.parse('Dense(format="lossless")' if lossless else spec) if isinstance(spec, str) else spec
        load = {name: stored.load for name, stored in checkpoint.tensors.items()}
        masks = {} if lossless else hidden_in(load)
        weights = []
        for name, stored in checkpoint.tensors.items():
            kept = "" if lossless else why_kept(name, stored.load())
            layout = layout_of(stored.shape, stored.dtype, RAW if lossless or kept not in ("", BINARY) else None)
            mask = None if kept else masks.get(name)
            weights.append(Weight(name, layout, parsed, stored.load, kept=kept, mask=mask))
            weights[-1].check()
        return cls(checkpoint, parsed, resolve(target, parsed, lossless), lossless, weights)

    @property
    def notes(self) -> dict[str, Any]:
        """What the file says of how it was made."""
        recipe = "lossless" if self.lossless else repr(self.spec)
        metadata = {key: text for key, text in self.checkpoint.metadata.items() if (key, text) not in IMPLIED}
        told = {"metadata": metadata} if metadata else {}
        return {"recipe": recipe, "original": self.checkpoint.original_bytes} | told

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
            "budget": {k: v for k, v in vars(self.target).items() if v is not None},
            "version": metadata.version("waterfill"),
        }

    def manifest(self, words: Sequence[str]) -> dict[str, Any]:
        """The manifest of the file, given what every tensor became."""
        rows = [manifest.Row(w.layout, said, w.reason) for w, said in zip(self.weights, words, strict=True)]
        return {"tensors": manifest.pack(rows), "aliases": self.checkpoint.aliases, "notes": self.notes}

    def run(self, fit: Callable[[int, float], float], words: Callable[[], Sequence[str]], options: Options) -> Run:
        """The run that will meet the target, with `words` for what is known so far of every tensor's parts."""
        names = [w.name for w in self.weights]

        def overhead(lengths: Sequence[int]) -> int:
            return size_of(self.manifest(words()), dict(zip(names, lengths, strict=True))) - sum(lengths)

        return Run(self.weights, fit, overhead, options.progress, options.workers)


def compress_file(  # noqa: PLR0913 - budgets exclude one another, and each deserves its own word
    source: "str | Path",
    target: "str | Path",
    spec: "Spec | str" = "Quantize()",
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
    if path.exists() and not options.force:
        raise OutputExists(f"{path} exists; choose another name or allow it to be replaced (force=True, --force)")
    job = Job.of(source, spec, Target(bits, size, ratio, price), lossless)
    journal = Journal.begin(options.work or path.with_name(path.name + ".work"), job.fingerprint())
    records = Records(job, journal)
    try:
        job.run(records.fit, records.words, options).meet(job.target, job.checkpoint.original_bytes)
    except (BudgetError, BadInput):
        journal.remove()  # going on with the same job would end the same way
        raise
    with FileWriter(path, force=options.force) as out:
        for i, weight in enumerate(job.weights):
            out.add(weight.name, journal.blob(i))
        written = out.finish(job.manifest(records.words()))
    journal.remove()
    seconds = time.monotonic() - began
    original = job.checkpoint.original_bytes
    return Summary(path, records.rows(), written, original, job.count, seconds, job.checkpoint.aliases)


class Records:
    """What is known of each weight's blob in the journal while a job runs.

    Raises PlanMismatch for a blob of other values than the checkpoint has now.
    """

    def __init__(self, job: Job, journal: Journal) -> None:
        self._job = job
        self._journal = journal
        self._notes = journal.finished(len(job.weights))
        self._resumed = set(self._notes)
        for i, note in self._notes.items():
            if note.get("input") != _digest(job.weights[i].load()):
                raise PlanMismatch(
                    f"{journal.folder} belongs to another job: tensor {job.weights[i].name!r} has other values now. "
                    "Put the checkpoint back, or delete the folder to begin anew"
                )

    def fit(self, i: int, price: float) -> float:
        """Fit weight i and keep its blob; real bits. What an earlier run finished is taken as it is, once."""
        if i in self._resumed:
            self._resumed.discard(i)
            return 8.0 * self._notes[i]["bytes"]
        weight = self._job.weights[i]
        read = _digest(weight.load())
        fitted = weight.fit(price)
        note = {"words": fitted.words, "error": fitted.error, "bytes": len(fitted.blob), "input": read}
        self._journal.put(i, fitted.blob, note)
        self._notes[i] = note
        return 8.0 * len(fitted.blob)

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
    memory: bytes at the peak, about. seconds: wall time, about."""

    rows: list[dict[str, Any]]
    size: int
    original: int
    weights: int
    price: float
    memory: int
    seconds: float


def plan_file(  # noqa: PLR0913 - as compress_file
    source: "str | Path",
    spec: "Spec | str" = "Quantize()",
    *,
    bits: float | None = None,
    size: int | None = None,
    ratio: float | None = None,
    price: float | None = None,
    lossless: bool = False,
    options: Options = Options(),
) -> Plan:
    """What `compress_file` would do with these arguments, from samples of every tensor; nothing is written."""
    job = Job.of(source, spec, Target(bits, size, ratio, price), lossless)
    began = time.monotonic()
    run = job.run(lambda i, at: 0.0, lambda: ["quantized"] * len(job.weights), options)
    wanted = job.target.file_bytes(job.count, job.checkpoint.original_bytes)
    at = job.target.price or FIXED_RATE_PRICE
    if wanted is not None:
        at = run.price_for(wanted)
    points = [w.curve.at(at) for w in job.weights]
    measured = sum(min(w.layout.entries, SAMPLE) * max(1, len(w.curve.points)) for w in job.weights)
    pace = (time.monotonic() - began) / max(1, measured)
    lengths = [int(p.bits / 8) for p in points]
    rows = [
        table_row(w.name, w.layout, ("", w.reason), length, None) | {"distortion": point.distortion}
        for w, length, point in zip(job.weights, lengths, points, strict=True)
    ]
    entries = [w.layout.entries for w in job.weights]
    memory = 300_000_000 + 14 * max(entries) * min(options.workers, len(entries))
    total = sum(lengths) + run.overhead(lengths)
    return Plan(rows, total, job.checkpoint.original_bytes, job.count, at, memory, 1.3 * pace * sum(entries))
