"""The batches of a training, step by step, the same again after an interruption and shared by several processes."""

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from waterfill.errors import BadInput
from waterfill.network.running.batches import count_of
from waterfill.network.running.state import seed_all

_APART = 1_000_003  # seeds of random numbers of one training and of another


class Stream:
    """Batches, epoch after epoch: those of a list in another order each time, those of a loader as it gives them.

    Args:
        batches: a list or a loader whose length is known.
        seed: of the order, and of the random numbers that a loader draws from PyTorch, NumPy and Python.
        rank, ranks: this process takes every `ranks`-th batch from `rank` on, all of them equally many.

    Raises:
        BadInput: for batches of unknown number, or fewer than there are processes.
    """

    def __init__(self, batches: Iterable[Any], seed: int = 0, rank: int = 0, ranks: int = 1) -> None:
        count = count_of(batches)
        if count is None:
            raise BadInput("the number of batches is not known: give a list, or a loader that has a length")
        if count == 0:
            raise BadInput("there are no batches: give at least one")
        if count < ranks:
            raise BadInput(f"{count} batches are too few for {ranks} processes: give each at least one")
        self._batches, self._seed, self.rank, self.ranks = batches, seed, rank, ranks
        self.steps = count // ranks
        """Steps of an epoch."""

    def from_step(self, step: int) -> Iterator[Any]:
        """The batches from a step on, without end. Raises BadInput for a loader that ends early."""
        epoch, behind = divmod(step, self.steps)
        while True:
            given = 0
            for batch in islice(self._epoch(epoch), behind, self.steps):
                given += 1
                yield batch
            if behind + given < self.steps:
                raise BadInput(
                    f"the loader gave {behind + given} batches in epoch {epoch + 1} and {self.steps} were expected; "
                    "give one that can be gone through again, and as long as it says"
                )
            epoch, behind = epoch + 1, 0

    def _epoch(self, epoch: int) -> Iterator[Any]:
        """The batches of this process in an epoch."""
        seed = _APART * self._seed + epoch
        if isinstance(self._batches, Sequence):
            order = list(range(len(self._batches)))
            random.Random(seed).shuffle(order)
            return (self._batches[i] for i in order[self.rank :: self.ranks])
        seed_all(seed)
        for generator in _generators(self._batches):
            generator.manual_seed(seed)
        return islice(iter(self._batches), self.rank, None, self.ranks)


def _generators(loader: Any) -> list[torch.Generator]:
    """The generators of a loader's own, for the order of its samples."""
    owners = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    found = (getattr(owner, "generator", None) for owner in owners)
    return [generator for generator in found if isinstance(generator, torch.Generator)]
