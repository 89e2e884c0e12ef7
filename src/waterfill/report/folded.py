"""The tensors that a file was made from, after folding the norms that are folded in the file."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from waterfill.network.checkpoint import open_checkpoint
from waterfill.network.folds import folded_tensors, touched
from waterfill.network.tensors import tensors_of
from waterfill.storage.folds import Fold

Source = str | Path | nn.Module | Mapping[str, Tensor]
"""A checkpoint's path, a module, or a state dict."""


@dataclass(frozen=True)
class Original:
    """A tensor that a file is compared with. load: computes it, folded where the file is; file: the checkpoint's, or
    what else holds it."""

    name: str
    file: "str | Path"
    load: Callable[[], Tensor]


def originals_of(source: Source) -> dict[str, Original]:
    """The tensors of a model, tied names included. Raises BadInput, CorruptFile."""
    if isinstance(source, str | Path):
        checkpoint = open_checkpoint(source)
        found = {name: Original(name, stored.file, stored.load) for name, stored in checkpoint.tensors.items()}
        aliases: Mapping[str, str] = checkpoint.aliases
    else:
        tensors, aliases, _ = tensors_of(source)
        found = {name: Original(name, "the model", value.detach().cpu) for name, value in tensors.items()}
    return found | {alias: found[name] for alias, name in aliases.items()}


def as_folded(stored: Mapping[str, Original], folds: Iterable[Fold]) -> dict[str, Original]:
    """A model's tensors with these norms folded; each is computed when it is loaded."""
    after = {name: Original(name, own.file, own.load) for name, own in stored.items()}
    for fold in folds:
        names = [name for name in touched(fold) if name in stored]
        vectors = {name: stored[name] for name in names if name != f"{fold.layer}.weight"}
        for name in names:
            own = stored[name]
            after[name] = Original(name, own.file, partial(_folded, name, fold, {**vectors, name: own}))
    return after


def _folded(name: str, fold: Fold, before: Mapping[str, Original]) -> Tensor:
    """One of the tensors `before` a fold, after it."""
    return folded_tensors({name: stored.load() for name, stored in before.items()}, fold)[name]
