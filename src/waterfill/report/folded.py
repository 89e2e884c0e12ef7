"""The tensors of a checkpoint as they are after folding the norms that a file says were folded."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from waterfill.network.checkpoint import Stored
from waterfill.network.folds import folded_tensors, touched
from waterfill.storage.folds import Fold


@dataclass(frozen=True)
class Folded(Stored):
    """A tensor that a fold changes. before: those that it is computed from, by name."""

    fold: Fold
    before: Mapping[str, Stored]

    def load(self) -> Tensor:
        """The tensor after folding."""
        return folded_tensors({name: stored.load() for name, stored in self.before.items()}, self.fold)[self.name]


def as_folded(stored: Mapping[str, Stored], folds: Iterable[Fold]) -> dict[str, Stored]:
    """A checkpoint's tensors with these norms folded; each is computed when it is loaded."""
    after = dict(stored)
    for fold in folds:
        names = [name for name in touched(fold) if name in stored]
        vectors = {name: stored[name] for name in names if name != f"{fold.layer}.weight"}
        for name in names:
            own = stored[name]
            after[name] = Folded(name, own.file, own.shape, own.dtype, own.start_at, fold, {**vectors, name: own})
    return after
