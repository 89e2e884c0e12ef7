"""The vectors of a compressed network that are trained, and how they are written again."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.compression.allocation.without_data import entrywise
from waterfill.errors import Mismatch
from waterfill.importance import Importance
from waterfill.model.compressed import CompressedModel
from waterfill.model.entry import Entry, encode
from waterfill.network.layout import RAW, VECTOR
from waterfill.parts import Dense

_MANTISSAS = (0, 1, 2, 3, 4, 5, 6, 7, 9)
"""Bits that a vector may be rounded to."""
_FINE = 2.0**-8  # an error of a vector that no network feels
_PACE = 0.3
"""Of a vector, in multiples of the root of its mean square: as codes go by their step, vectors go by their size."""
_VECTOR, _BUFFER = "vector.", "buffer."


def can_be_learned(value: Tensor) -> bool:
    """Whether a parameter is in training and has a type that holds small steps."""
    return value.requires_grad and value.is_floating_point() and value.dtype.itemsize > 1


def check_shapes(values: Mapping[str, Tensor], made: CompressedModel) -> None:
    """Raises Mismatch for a network of other shapes than the one that `made` was made of, such as one before pruning,
    and for one without values."""
    for name, value in values.items():
        shape = tuple(made.entries[name].layout.shape) if name in made.entries else tuple(value.shape)
        if tuple(value.shape) != shape or value.is_meta:
            has = "no values: it is on the meta device" if value.is_meta else f"shape {list(value.shape)}"
            raise Mismatch(f"{name!r} has {has}, and {list(shape)} in the file; give the network that was compressed")


class Vectors:
    """The vectors of a network in training that are parameters with different entries, such as biases.

    One of equal entries, as folded norms have, takes no bytes and stays as it is; so does one that `made` gave no more
    than one value, as its entries were not worth their bits, unless there is room for them now. Training goes on in
    float32, whatever the network computes in. Statistics that a norm moves are written too.

    model: with its own weights, before those of `made` are installed. size: bytes that the file may have.
    """

    def __init__(self, model: nn.Module, made: CompressedModel, size: int) -> None:
        values = dict(model.named_parameters(remove_duplicate=False))
        check_shapes(values, made)
        self._own = {
            name: values[name]
            for name, entry in made.entries.items()
            if entry.layout.role == VECTOR and name in values and can_be_learned(values[name])
            and not _constant(values[name]) and _worth(entry, size - made.size)
        }  # fmt: skip
        self._paces = {name: _PACE * _size(value) for name, value in self._own.items()}
        self._errors = {name: _error(made.entries[name], value) for name, value in self._own.items()}
        self._model, self._masters = model, dict[str, Tensor]()
        self._buffers: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._own)

    def begin(self, made: CompressedModel) -> None:
        """Go on from the values that the network has now, those of `made`."""
        for name, value in self._own.items():
            same = value.dtype == torch.float32
            self._masters[name] = value if same else value.detach().float().requires_grad_()
        self._buffers = {name: value.clone() for name, value in self._model.named_buffers() if name in made.entries}

    def parameters(self) -> list[Tensor]:
        """What an optimizer changes, float32."""
        return list(self._masters.values())

    def groups(self) -> list[dict[str, Any]]:
        """As `Learner.groups`."""
        return [{"params": [value], "pace": self._paces[name]} for name, value in self._masters.items()]

    @torch.no_grad()
    def after_backward(self) -> None:
        """Bring gradients to `parameters`."""
        for name, value in self._own.items():
            if self._masters[name] is not value:
                self._masters[name].grad = None if value.grad is None else value.grad.float()
                value.grad = None

    @torch.no_grad()
    def after_step(self) -> None:
        """Bring what was learned to the network."""
        for name, value in self._own.items():
            if self._masters[name] is not value:
                value.copy_(self._masters[name])

    def state(self) -> dict[str, Tensor]:
        """All that is not in the network itself."""
        kept = {f"{_VECTOR}{name}": value.detach() for name, value in self._masters.items()}
        return kept | {f"{_BUFFER}{name}": value for name, value in self._buffers.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for name, value in self._masters.items():
            value.copy_(state[f"{_VECTOR}{name}"])
        self._buffers = {name: state[f"{_BUFFER}{name}"].to(value) for name, value in self._buffers.items()}
        self.after_step()

    @torch.no_grad()
    def entries(self, made: CompressedModel, room: int, *, strict: bool) -> dict[str, Entry]:
        """The vectors, and statistics that have moved, as they are written.

        Each is at least as exact as what `made` had was to the original, and finer where all together stay within
        `room` bytes; coarser, if it must be and `strict` says so.
        """
        values = dict(self._masters) | self._moved()
        several = {
            name: [_rounded(made.entries[name], value, mantissa) for mantissa in _MANTISSAS]
            for name, value in values.items()
        }
        level = {name: self._enough(name, tried) for name, tried in several.items()}
        if strict and _bytes_at(several, level) > room:
            level = dict.fromkeys(several, 0)
        for finer in range(1, len(_MANTISSAS)):
            for name in level:
                more = level | {name: finer}
                if level[name] < finer and _bytes_at(several, more) <= room:
                    level = more
        return {name: tried[level[name]] for name, tried in several.items()}

    def _enough(self, name: str, tried: list[Entry]) -> int:
        """The first of several precisions that is as exact as the vector was before."""
        error = max(self._errors.get(name, 0.0), _FINE)
        return next((i for i, entry in enumerate(tried) if (entry.error or 0.0) <= error), len(tried) - 1)

    def room(self, made: CompressedModel) -> int:
        """Bytes that they take in `made`."""
        return sum(len(made.entries[name].blob) for name in (*self._masters, *self._moved()))

    def _moved(self) -> dict[str, Tensor]:
        """Buffers that are others than at first."""
        now = dict(self._model.named_buffers())
        return {name: now[name] for name, value in self._buffers.items() if not torch.equal(now[name], value)}


def _size(value: Tensor) -> float:
    """The root of the mean square of the entries."""
    return float(value.detach().double().square().mean().sqrt())


def _bytes_at(several: Mapping[str, list[Entry]], level: Mapping[str, int]) -> int:
    """Bytes of entries at the precisions that are chosen of each."""
    return sum(len(tried[level[name]].blob) for name, tried in several.items())


def _error(entry: Entry, value: Tensor) -> float:
    """The error of a compressed vector relative to its original."""
    target = entry.layout.split(value.detach().cpu())[0].double()
    return float((target - entry.parts[0].dense().double()).norm() / target.norm().clamp_min(1e-300))


def _worth(entry: Entry, spare: int) -> bool:
    """Whether the entries of a vector are in the file, or may be, at a byte each."""
    return entry.layout.entries <= spare or not _constant(entry.parts[0].dense())


def _constant(value: Tensor) -> bool:
    return bool((value == value.reshape(-1)[:1]).all())


def _rounded(entry: Entry, value: Tensor, mantissa: int) -> Entry:
    """The entry of a vector with another value, in so many bits of mantissa; of what is no vector, bit for bit."""
    exact = entry.layout.role == RAW
    part_of = Dense(format="lossless") if exact else Dense(mantissa=mantissa)
    target = entry.layout.split(value.detach().to(entry.layout.dtype).cpu())[0]
    part = part_of.fit(target, Importance() if exact else entrywise(target), 1.0)
    blob = encode((part,))
    if exact:
        return replace(entry, parts=(part,), blob=blob, error=0.0)
    gap, energy = target - part.dense(), Importance().inner(target, target)
    error = (Importance().inner(gap, gap) / energy) ** 0.5 if energy > 0 else 0.0
    return replace(entry, parts=(part,), blob=blob, error=error)
