"""A checkpoint to be compressed, its task and its budget."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from waterfill.assignment import LOSSLESS, Assignment, Recipe
from waterfill.compression.allocation.budget import Budget
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.costs.assumptions import informed
from waterfill.compression.task import EXACT, Task, kept_or_not, resolve
from waterfill.errors import BadInput
from waterfill.network.checkpoint import Checkpoint, open_checkpoint
from waterfill.network.kept import BINARY
from waterfill.network.layout import RAW, layout_of
from waterfill.network.pruned import hidden_in
from waterfill.network.stored import IMPLIED
from waterfill.part import Spec


@dataclass(frozen=True)
class Job:
    """A checkpoint, the task of compressing it, and the budget."""

    checkpoint: Checkpoint
    task: Task
    budget: Budget

    @classmethod
    def of(cls, source: "str | Path", recipe: "Recipe | Assignment", budget: Budget) -> "Job":
        """Read the headers and lay out every tensor; the recipe `LOSSLESS` keeps every bit.

        Raises BadInput, CorruptFile, BadRecipe, BudgetError.
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
        task = Task(
            _weights(checkpoint, assignment), checkpoint.aliases, notes | ({"metadata": metadata} if metadata else {})
        )
        return cls(checkpoint, task, resolve(budget, LOSSLESS if assignment is None else assignment))

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


def _weights(checkpoint: Checkpoint, assignment: Assignment | None) -> list[Weight]:
    """A `Weight` for every tensor; without recipes each is kept bit for bit. Raises BadInput, BadRecipe."""
    tensors, weights = checkpoint.tensors, list[Weight]()
    specs: dict[str, Spec | None] = dict.fromkeys(tensors)
    masks: dict[str, Callable[[], Tensor]] = {}
    if assignment is not None:
        specs = assignment.by_name(tensors, checkpoint.aliases)
        masks = hidden_in({name: stored.load for name, stored in tensors.items()})
    for name, stored in tensors.items():
        spec = specs[name]
        kept = "" if assignment is None else kept_or_not(name, stored.load(), spec)
        layout = layout_of(stored.shape, stored.dtype, RAW if spec is None or kept not in ("", BINARY) else None)
        mask = None if kept else masks.get(name)
        weights.append(Weight(name, layout, spec or EXACT, stored.load, kept=kept, mask=mask))
        weights[-1].check()
    return weights if assignment is None else informed(weights)
