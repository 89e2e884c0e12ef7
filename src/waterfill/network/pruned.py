"""Weights masked by `torch.nn.utils.prune`: a network computes with `weight_orig` times `weight_mask`.

Masked entries are stored as zero, and errors in them do not count.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from waterfill.importance import Importance
from waterfill.network.layout import Layout

_ORIGINAL, _MASK = "_orig", "_mask"


def masks_of(names: Iterable[str]) -> dict[str, str]:
    """The names of pruned weights, each with that of its mask."""
    known = set(names)
    pairs = {name: name.removesuffix(_ORIGINAL) + _MASK for name in known if name.endswith(_ORIGINAL)}
    return {name: mask for name, mask in pairs.items() if mask in known}


def hidden_in(load: Mapping[str, Callable[[], Tensor]]) -> dict[str, Callable[[], Tensor]]:
    """By the name of a pruned weight, a function that loads its mask (bool, true where it is used).

    load: of all tensors, by name. Masks have their weight's shape, and only zeros and ones.
    """
    return {name: _mask(load[mask]) for name, mask in masks_of(load).items() if _fits(load[mask](), load[name]())}


def _mask(load: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: load() != 0


def _fits(mask: Tensor, weight: Tensor) -> bool:
    return mask.shape == weight.shape and not mask.is_complex() and bool(((mask == 0) | (mask == 1)).all())


def visible(weight: Tensor, mask: Tensor) -> Tensor:
    """A weight, zero where its mask (bool) hides it."""
    return weight.detach().masked_fill(~mask, 0)


def within(importance: Importance, mask: Tensor, layout: Layout) -> Importance:
    """The importance of a weight under a mask (bool).

    Rows and columns that are masked as a whole cost nothing. Where single entries are masked, errors in one column
    cannot always be compensated in the others: only the diagonal counts.
    """
    masks = layout.split(mask.to(torch.uint8))
    shown = torch.stack([matrix != 0 for matrix in masks])
    rows, cols = shown.any(2).any(0), shown.any(1).any(0)
    weights = importance.rows.expand(len(rows)) * rows
    if importance.gram is None:
        return replace(importance, rows=weights, diagonal=importance.diagonal.expand(len(cols)) * cols)
    if bool((shown == (rows[:, None] & cols[None])).all()) and len(importance.gram) == len(cols):
        both = cols.to(importance.gram.dtype)
        keep = both[:, None] * both
        halves = None if importance.halves is None else (importance.halves[0] * keep, importance.halves[1] * keep)
        return replace(importance, rows=weights, gram=importance.gram * keep, halves=halves)
    diagonal = importance.gram.diagonal().repeat(len(cols) // len(importance.gram))
    floor = importance.damping * diagonal.mean()  # as of directions that were not sampled
    return Importance(weights, diagonal=(diagonal + floor) * cols, kernel=importance.kernel)
