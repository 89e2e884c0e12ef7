"""The vectors of a compressed network that can be trained, and how they are written again."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from waterfill.compression.allocation.without_data import entrywise
from waterfill.importance import Importance
from waterfill.model.compressed import CompressedModel
from waterfill.model.entry import Entry, encode
from waterfill.network.layout import VECTOR
from waterfill.parts import Dense

_MANTISSAS = (9, 7, 6, 5, 4, 3, 2)
"""Bits, from the most on: a vector is rounded to the first that its room allows."""


def trained_vectors(model: nn.Module, made: CompressedModel) -> dict[str, nn.Parameter]:
    """By name, the vectors of a network that are parameters with different entries, such as biases.

    One of equal entries, as folded norms have, takes no bytes and stays as it is.
    """
    values = dict(model.named_parameters(remove_duplicate=False))
    return {
        name: values[name]
        for name, entry in made.entries.items()
        if name in values and entry.layout.role == VECTOR and not _constant(values[name])
    }


@torch.no_grad()
def with_vectors(made: CompressedModel, values: Mapping[str, Tensor], room: int) -> CompressedModel:
    """A compressed network with other values of some vectors, all together in about `room` bytes at most, as they are
    in `made` where that is too little."""
    for mantissa in _MANTISSAS:
        changed = {name: _rounded(made.entries[name], value, mantissa) for name, value in values.items()}
        if sum(len(entry.blob) for entry in changed.values()) <= room:
            return replace(made, entries=made.entries | changed)
    return made


def room_of(made: CompressedModel, names: Mapping[str, Tensor]) -> int:
    """Bytes that some vectors take."""
    return sum(len(made.entries[name].blob) for name in names)


def _constant(value: Tensor) -> bool:
    return bool((value == value.reshape(-1)[:1]).all())


def _rounded(entry: Entry, value: Tensor, mantissa: int) -> Entry:
    """The entry of a vector with another value, in so many bits of mantissa."""
    target = entry.layout.split(value.detach().cpu())[0]
    part = Dense(mantissa=mantissa).fit(target, entrywise(target), 1.0)
    gap, energy = target - part.dense(), Importance().inner(target, target)
    error = (Importance().inner(gap, gap) / energy) ** 0.5 if energy > 0 else 0.0
    return replace(entry, parts=(part,), blob=encode((part,)), error=error)
