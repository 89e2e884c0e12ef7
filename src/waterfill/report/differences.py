"""A .wf file beside the checkpoint it came from: which tensors differ, and by how much."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from waterfill.dtypes import octets
from waterfill.errors import BadInput, VerifyError
from waterfill.model.lazy import CompressedTensors
from waterfill.network.kept import KEPT, pieces
from waterfill.network.layout import can_be_rounded
from waterfill.network.pruned import hidden_in, visible
from waterfill.report.folded import Original, Source, as_folded, originals_of
from waterfill.report.listing import RUNNING, Item, Listing, overview

_FAR = 1.2  # of the norm; two models are about sqrt(2) apart, the fewest bits about 1


@dataclass(frozen=True)
class Comparison:
    """items: the tensors, with their errors relative to the originals' norms. error: that of all weights together;
    statistics: that of the running statistics of norms, which may be of another size altogether. folds: norms that were
    folded in the original too before it was compared."""

    items: tuple[Item, ...]
    error: float
    statistics: float
    folds: int

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        errors = {item.name: item.error for item in self.items}
        return {"error": self.error, "statistics_error": self.statistics, "folded": self.folds, "errors": errors}

    def text(self, everything: bool) -> str:
        """A table, or a line where no tensor differs."""
        if not any(item.error for item in self.items):
            return "every tensor is the original's, bit for bit"
        lines = [overview(self.items, everything), ""]
        if self.folds:
            lines.append(f"{self.folds} norms are folded into the layers before them; so were the original's here")
        lines.append(f"relative error of all weights: {100 * self.error:.3f} %")
        if self.statistics:
            lines.append(f"relative error of the running statistics of norms: {100 * self.statistics:.3f} %")
        return "\n".join([*lines, ""])


Watch = Callable[[Item, Tensor, Tensor], None]
"""(item, restored, original): is shown every pair of tensors that is compared."""


def compare(tensors: CompressedTensors, listing: Listing, model: Source, watch: Watch | None = None) -> Comparison:
    """Every tensor of a file beside that of `model`, norms folded as in the file, a pair in memory at a time.

    Raises VerifyError where names, shapes or types differ, or bits that were to be kept, or all weights by more
    than weights of zero would; BadInput, CorruptFile for `model`, BadInput for a file that does not say what was
    folded.
    """
    stored, label = originals_of(model), f"{model}" if isinstance(model, str | Path) else "the original"
    _check_names(tensors, stored, label)
    folds = listing.folds
    if folds is None:
        raise BadInput("the file holds norms folded into weights and does not say which: compress the model anew")
    originals = as_folded(stored, folds)
    exact = listing.recipe == "lossless"
    masks = {} if exact else hidden_in({name: original.load for name, original in originals.items()})
    items, sums = [], {False: (0.0, 0.0), True: (0.0, 0.0)}
    for item in listing.items:
        kept = exact or item.reason.endswith(KEPT)
        restored, original = tensors[item.name], originals[item.name]
        error, energy = _distance(restored, original, kept, masks.get(item.name))
        running = item.name.endswith(RUNNING)
        sums[running] = sums[running][0] + error, sums[running][1] + energy
        items.append(replace(item, error=(error / energy) ** 0.5 if energy else 0.0))
        if watch is not None:
            watch(items[-1], restored, original.load())
    for alias, name in listing.aliases.items():
        if not _same_bits(originals[alias].load(), originals[name].load()):
            raise VerifyError(f"{alias!r} is stored as tied to {name!r}, but in {label} they differ")
    weights, statistics = ((lost / whole) ** 0.5 if whole else 0.0 for lost, whole in sums.values())
    if weights > _FAR:
        raise VerifyError(
            f"the weights differ from those of {label} by {100 * weights:.0f} % of their norm, as those of two models "
            "do (zeros would by 100 %)"
        )
    return Comparison(tuple(items), weights, statistics, len(folds))


def _check_names(tensors: CompressedTensors, originals: dict[str, Original], model: str) -> None:
    odd = sorted(set(tensors) ^ set(originals))
    if odd:
        only = "the file" if odd[0] in tensors else model
        raise VerifyError(f"tensor {odd[0]!r} is in {only} only, one of {len(odd)} such: these are two models")


def _distance(
    restored: Tensor, original: Original, exact: bool, mask: Callable[[], Tensor] | None
) -> tuple[float, float]:
    """Squared norms of the difference and of the original, a piece at a time; zero and zero for equal bits of numbers
    that are no reals. mask: gives the entries that count (bool)."""
    expected = original.load()
    if restored.shape != expected.shape or restored.dtype != expected.dtype:
        ours, theirs = (f"{list(value.shape)} {value.dtype}" for value in (restored, expected))
        raise VerifyError(f"tensor {original.name!r} is {ours} in the file, {theirs} in {original.file}")
    same = _same_bits(restored, expected)
    if not same and (exact or not can_be_rounded(expected.dtype)):
        raise VerifyError(f"tensor {original.name!r} was to be kept bit for bit, and differs from {original.file}")
    if not can_be_rounded(expected.dtype):
        return 0.0, 0.0
    expected = expected if mask is None else visible(expected, mask())
    energy = sum(_energy(piece.double()) for piece in pieces(expected))
    if same:
        return 0.0, energy
    gaps = (a.double() - b.double() for a, b in zip(pieces(restored), pieces(expected), strict=True))
    return sum(map(_energy, gaps)), energy


def _energy(values: Tensor) -> float:
    """The sum of the squares of what is finite."""
    return float(values.nan_to_num(0, 0, 0).square().sum())


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(octets(a), octets(b))
