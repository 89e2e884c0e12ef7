"""Compression of a folder with a text, block by block, from and to disk."""

import shutil
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from waterfill.arithmetic import by_own_arithmetic
from waterfill.assignment import Assignment
from waterfill.compression.allocation.budget import Budget
from waterfill.compression.blocks.in_memory import check_runs
from waterfill.compression.blocks.measured import MeasuredStore
from waterfill.compression.blocks.run import Blockwise, Room
from waterfill.compression.file import Summary, rows_of
from waterfill.compression.job import Job
from waterfill.compression.options import AUTO_BLOCKS, Options
from waterfill.compression.post_training import AUTOMATIC
from waterfill.compression.steps.choice import with_choice
from waterfill.compression.store import JournalStore
from waterfill.compression.task import Compression, Task, in_memory, remarked, resolve
from waterfill.errors import BadInput, BudgetError
from waterfill.hf.blocks import source_on_disk
from waterfill.hf.folder import WEIGHTS
from waterfill.hf.original import structure_of
from waterfill.hf.staging import Staging
from waterfill.hf.text import Windows
from waterfill.network.blocks.chain import Chain
from waterfill.network.blocks.hidden import HiddenStates
from waterfill.network.checkpoint import Checkpoint
from waterfill.network.running.forward import as_deployed
from waterfill.storage import FileWriter
from waterfill.storage.work_directory import Journal

_STATES = "blocks"
Prepared = tuple[Blockwise, dict[str, Any]]
"""The work, and what identifies it."""


@torch.inference_mode(False)
def prepared(
    source: tuple[Path, Checkpoint],
    task: tuple[Assignment, Budget],
    inputs: tuple[Tensor, Windows],
    options: Options,
) -> Prepared | None:
    """The compression of a folder block by block, tested on one batch; None, with a warning, where it cannot be.

    task: the recipes and the budget. inputs: the tokens of the text. Raises BadInput where `options.blocks` names a
    list that is no run of blocks.
    """
    (folder, checkpoint), (recipe, budget), (tokens, windows) = source, task, inputs
    model = structure_of(folder)
    windows.check_fits(model)
    job = Job.of(folder, recipe, resolve(budget, recipe))
    notes = job.task.notes | {"recipe": recipe.text or AUTOMATIC, "folded": False}
    try:
        check_runs(options)
        named = None if options.blocks == AUTO_BLOCKS else options.blocks
        full = Task(with_choice(job.task.weights), job.task.aliases, notes)
        found = source_on_disk(model, checkpoint, full, named)
        chain = Chain(found.model, found.blocks, found.original)
        batches = windows.batches(tokens)
        with torch.no_grad(), as_deployed(found.model):
            chain.check(batches[0])
    except BadInput as error:
        if options.blocks != AUTO_BLOCKS:
            raise
        warnings.warn(f"compressed as a whole, not block by block: {error}", stacklevel=4)
        return None
    settled = in_memory(full, options).options
    work = Blockwise(found, chain, batches, job.budget, settled, {"blocks": found.blocks.prefix})
    text = zlib.crc32(tokens.numpy().data)
    about = {"text": text, "windows": repr(windows), "blocks": found.blocks.prefix}
    about |= {"steps": repr(options.steps), "memory": options.memory}  # both decide what is measured
    return work, job.fingerprint() | about


@torch.inference_mode(False)
@by_own_arithmetic
def compressed(found: Prepared, staging: Staging) -> Summary:
    """Run a compression, from where an earlier one was, and write its file.

    Raises BudgetError, PlanMismatch, and OSError as of a full disk.
    """
    work, plan = found
    folder = work.options.work or staging.journal
    states = folder / _STATES
    with Journal.claim(folder), work.options.shown() as options:
        journal = Journal.begin(folder, plan)
        store = JournalStore(journal, len(work.source.task.weights))
        try:
            settled = Blockwise(**(vars(work) | {"options": options}))
            done = settled.run(Room(HiddenStates(states, 0), MeasuredStore(states), store, states))
        except (BudgetError, BadInput):  # going on with the same job would end the same way
            _remove(journal, states)
            raise
        written = _written(done, work.allowed, staging.made / WEIGHTS)
        _remove(journal, states)
    task = done.task
    return Summary(staging.made, rows_of(done), written, task.original, task.count, 0.0, dict(task.aliases))


def _written(done: Compression[Any], allowed: int | None, path: Path) -> int:
    """Write the file; its bytes."""
    lengths = [len(done.store.blob(i)) for i in range(len(done.weights))]
    notes = remarked(done.task.notes, allowed, lambda notes: done.with_notes(notes).file_bytes(lengths))
    with FileWriter(path, force=True) as out:
        for i, weight in enumerate(done.weights):
            out.add(weight.name, done.store.blob(i))
        return out.finish(done.with_notes(notes).manifest())


def _remove(journal: Journal, states: Path) -> None:
    shutil.rmtree(states, ignore_errors=True)
    journal.remove()
