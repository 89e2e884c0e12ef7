"""The tensors of a checkpoint after folding the norms that are folded in a file."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from waterfill.network.checkpoint import Stored
from waterfill.network.folds import folded_tensors, touched
from waterfill.storage.folds import Fold


@dataclass(frozen=True)
class Original:
    """A tensor that a file is compared with. load: computes it, folded where the file is; file: the checkpoint's."""

    name: str
    file: Path
    load: Callable[[], Tensor]


def as_folded(stored: Mapping[str, Stored], folds: Iterable[Fold]) -> dict[str, Original]:
    """A checkpoint's tensors with these norms folded; each is computed when it is loaded."""
    after = {name: Original(name, own.file, own.load) for name, own in stored.items()}
    for fold in folds:
        names = [name for name in touched(fold) if name in stored]
        vectors = {name: stored[name] for name in names if name != f"{fold.layer}.weight"}
        for name in names:
            own = stored[name]
            after[name] = Original(name, own.file, partial(_folded, name, fold, {**vectors, name: own}))
    return after


def _folded(name: str, fold: Fold, before: Mapping[str, Stored]) -> Tensor:
    """One of the tensors `before` a fold, after it."""
    return folded_tensors({name: stored.load() for name, stored in before.items()}, fold)[name]
