"""A checkpoint to be compressed, its task and its budget."""

import hashlib
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from waterfill.compression.allocation.budget import Budget
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.costs.assumptions import informed
from waterfill.compression.engine.engine import Engine
from waterfill.compression.engine.reference import weight_of
from waterfill.compression.engine.remote import Remote
from waterfill.compression.task import LOSSLESS, Task, resolve
from waterfill.errors import BadInput
from waterfill.network.checkpoint import Checkpoint, open_checkpoint
from waterfill.network.kept import why_kept
from waterfill.network.pruned import hidden_in, masks_of
from waterfill.network.stored import IMPLIED, Stored
from waterfill.part import Spec
from waterfill.recipe import as_spec


@dataclass(frozen=True)
class Job:
    """A checkpoint, the task of compressing it, and the budget. remote: what an engine is told; None without one."""

    checkpoint: Checkpoint
    task: Task
    budget: Budget
    remote: Remote | None = None

    @classmethod
    def of(cls, source: "str | Path", spec: "Spec | str", budget: Budget, engine: Engine | None = None) -> "Job":
        """Read the headers and lay out every tensor; the spec `LOSSLESS` keeps every bit.

        Raises BadInput, CorruptFile, BadRecipe, BudgetError, EngineError.
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
        resolved = resolve(budget, LOSSLESS if parsed is None else parsed)
        pairs = _with_masks(checkpoint, parsed)
        remote = None if engine is None else Remote.of(engine, pairs, None if parsed is None else repr(parsed))
        task = Task(
            _weights(pairs, parsed, remote), checkpoint.aliases, notes | ({"metadata": metadata} if metadata else {})
        )
        return cls(checkpoint, task, resolved, remote)

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the job: input, recipe, budget and version.

        Of the input these are names, types and shapes; a checksum of the values of each tensor is noted with its blob
        (`DirectoryStore`).
        """
        digest = hashlib.sha256()
        for stored in self.checkpoint.tensors.values():
            digest.update(f"{stored.name} {stored.dtype} {stored.shape}\n".encode())
        return {
            "input": digest.hexdigest(),
            "recipe": self.task.notes["recipe"],
            "budget": self.budget.given,
            "version": metadata.version("waterfill"),
        }


def _with_masks(checkpoint: Checkpoint, spec: Spec | None) -> list[tuple[Stored, Stored | None]]:
    """Every tensor, with the mask that hides some of its entries if there is one and a spec."""
    tensors = checkpoint.tensors
    hidden = {} if spec is None else hidden_in({name: stored.load for name, stored in tensors.items()})
    masks = masks_of(tensors)
    return [(stored, tensors[masks[name]] if name in hidden else None) for name, stored in tensors.items()]


def _kept(stored: Stored, spec: Spec | None) -> str:
    return "" if spec is None else why_kept(stored.name, stored.load())


def _weights(pairs: list[tuple[Stored, Stored | None]], spec: Spec | None, remote: Remote | None) -> list[Weight]:
    """A `Weight` for every tensor; without a spec each is kept bit for bit. Raises BadInput."""
    found = remote.inspect() if remote is not None and spec is not None else None
    weights = []
    for i, (stored, mask) in enumerate(pairs):
        kept, reason = found[i] if found is not None else (_kept(stored, spec), None)
        weights.append(replace(weight_of(stored, spec, kept, mask), known_reason=reason))
        weights[-1].check()
    return weights if spec is None else informed(weights)
