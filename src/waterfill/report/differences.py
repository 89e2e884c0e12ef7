"""A .wf file beside the checkpoint it came from: which tensors differ, and by how much."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from waterfill.cli.exit_codes import VerifyError
from waterfill.dtypes import octets
from waterfill.model.lazy import CompressedTensors
from waterfill.network.checkpoint import Stored, open_checkpoint
from waterfill.network.kept import KEPT, pieces
from waterfill.network.layout import can_be_rounded
from waterfill.network.pruned import hidden_in, visible
from waterfill.report.listing import Item, Listing, overview


@dataclass(frozen=True)
class Comparison:
    """items: the tensors, with their errors relative to the originals' norms. error: that of all of them together."""

    items: tuple[Item, ...]
    error: float

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"error": self.error, "errors": {item.name: item.error for item in self.items}}

    def text(self, everything: bool) -> str:
        """A table, or a line where there is nothing to tell."""
        if not any(item.error for item in self.items):
            return "every tensor is the original's, bit for bit"
        return f"{overview(self.items, everything)}\n\nrelative error of all tensors: {100 * self.error:.3f} %\n"


def compare(tensors: CompressedTensors, listing: Listing, model: str) -> Comparison:
    """Every tensor of a file beside that of `model`, a pair in memory at a time.

    Raises VerifyError where names, shapes or types differ, or bits that were to be kept; BadInput, CorruptFile for
    `model`.
    """
    checkpoint = open_checkpoint(model)
    originals = checkpoint.tensors | {alias: checkpoint.tensors[name] for alias, name in checkpoint.aliases.items()}
    _check_names(tensors, originals, model)
    exact = listing.recipe == "lossless"
    masks = {} if exact else hidden_in({name: stored.load for name, stored in originals.items()})
    items, lost, whole = [], 0.0, 0.0
    for item in listing.items:
        kept = exact or item.reason.endswith(KEPT)
        error, energy = _distance(tensors[item.name], originals[item.name], kept, masks.get(item.name))
        lost, whole = lost + error, whole + energy
        items.append(replace(item, error=(error / energy) ** 0.5 if energy else 0.0))
    for alias, name in listing.aliases.items():
        if not _same_bits(originals[alias].load(), originals[name].load()):
            raise VerifyError(f"{alias!r} is stored as tied to {name!r}, but in {model} they differ")
    return Comparison(tuple(items), (lost / whole) ** 0.5 if whole else 0.0)


def _check_names(tensors: CompressedTensors, originals: dict[str, Stored], model: str) -> None:
    odd = sorted(set(tensors) ^ set(originals))
    if odd:
        only = "the file" if odd[0] in tensors else model
        raise VerifyError(f"tensor {odd[0]!r} is in {only} only, one of {len(odd)} such: these are two models")


def _distance(found: Tensor, original: Stored, exact: bool, mask: Callable[[], Tensor] | None) -> tuple[float, float]:
    """Squared norms of the difference and of the original, a piece at a time; zero and zero for equal bits of numbers
    that are no reals. mask: what tells the entries that count (bool)."""
    wanted = original.load()
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        said = f"{list(found.shape)} {found.dtype} in the file, {list(wanted.shape)} {wanted.dtype} in {original.file}"
        raise VerifyError(f"tensor {original.name!r} is {said}")
    same = _same_bits(found, wanted)
    if not same and (exact or not can_be_rounded(wanted.dtype)):
        raise VerifyError(f"tensor {original.name!r} was to be kept bit for bit, and differs from {original.file}")
    if not can_be_rounded(wanted.dtype):
        return 0.0, 0.0
    wanted = wanted if mask is None else visible(wanted, mask())
    energy = sum(_energy(piece.double()) for piece in pieces(wanted))
    if same:
        return 0.0, energy
    gaps = (a.double() - b.double() for a, b in zip(pieces(found), pieces(wanted), strict=True))
    return sum(map(_energy, gaps)), energy


def _energy(values: Tensor) -> float:
    """The sum of the squares of what is finite."""
    return float(values.nan_to_num(0, 0, 0).square().sum())


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(octets(a), octets(b))
