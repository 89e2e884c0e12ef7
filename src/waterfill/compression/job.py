"""A checkpoint to be compressed, its task and its budget."""

import hashlib
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from waterfill.assignment import LOSSLESS, Assignment, Recipe
from waterfill.compression.allocation.budget import Budget
from waterfill.compression.allocation.held import as_held, format_in
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.costs.assumptions import informed
from waterfill.compression.engine.engine import Engine
from waterfill.compression.engine.reference import weight_of
from waterfill.compression.engine.remote import Remote
from waterfill.compression.task import Task, kept_or_not, resolve
from waterfill.errors import BadInput
from waterfill.network.checkpoint import Checkpoint, open_checkpoint
from waterfill.network.pruned import hidden_in, masks_of
from waterfill.network.stored import IMPLIED, Stored
from waterfill.part import Spec


@dataclass(frozen=True)
class Job:
    """A checkpoint, the task of compressing it, and the budget. remote: what an engine is told; None without one."""

    checkpoint: Checkpoint
    task: Task
    budget: Budget
    remote: Remote | None = None

    @classmethod
    def of(
        cls, source: "str | Path", recipe: "Recipe | Assignment", budget: Budget, engine: Engine | None = None
    ) -> "Job":
        """Read the headers and lay out every tensor; the recipe `LOSSLESS` keeps every bit.

        Raises BadInput, CorruptFile, BadRecipe, BudgetError, EngineError.
        """
        checkpoint = open_checkpoint(source)
        if not checkpoint.tensors:
            raise BadInput(f"{source} holds no tensors; there is nothing to compress")
        assignment = None if recipe == LOSSLESS else Assignment.of(recipe)
        metadata = {key: text for key, text in checkpoint.metadata.items() if (key, text) not in IMPLIED}
        notes: dict[str, Any] = {
            "recipe": LOSSLESS if assignment is None else assignment.text,
            "original": checkpoint.original_bytes,
        }
        resolved = resolve(budget, LOSSLESS if assignment is None else assignment)
        tensors = _tensors(checkpoint, assignment)
        remote = None if engine is None else Remote.of(engine, [(t.stored, t.mask, t.spec) for t in tensors])
        task = Task(
            _weights(tensors, assignment, remote),
            checkpoint.aliases,
            notes | ({"metadata": metadata} if metadata else {}),
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


@dataclass(frozen=True)
class _Tensor:
    """A tensor with its spec, None to keep every bit, and the mask that hides some of its entries if there is one."""

    stored: Stored
    spec: Spec | None
    mask: Stored | None


def _tensors(checkpoint: Checkpoint, assignment: Assignment | None) -> list[_Tensor]:
    """Every tensor; without recipes each is kept bit for bit. Raises BadRecipe."""
    tensors = checkpoint.tensors
    if assignment is None:
        return [_Tensor(stored, None, None) for stored in tensors.values()]
    specs = as_held(assignment.by_name(tensors, checkpoint.aliases))
    hidden, masks = hidden_in({name: stored.load for name, stored in tensors.items()}), masks_of(tensors)
    return [_Tensor(s, specs[n], tensors[masks[n]] if n in hidden else None) for n, s in tensors.items()]


def _weights(tensors: list[_Tensor], assignment: Assignment | None, remote: Remote | None) -> list[Weight]:
    """A `Weight` for every tensor. Raises BadInput."""
    found = {} if remote is None else remote.inspect()
    format = format_in({one.stored.name: one.spec for one in tensors})
    weights = []
    for i, (stored, spec, mask) in enumerate((one.stored, one.spec, one.mask) for one in tensors):
        if i in found:
            kept, reason = found[i]
        else:
            kept, reason = "" if assignment is None else kept_or_not(stored.name, stored.load(), spec), None
        weights.append(replace(weight_of(stored, spec, kept, mask), known_reason=reason, format=format))
        weights[-1].check()
    return weights if assignment is None else informed(weights)
