"""What the first pass leaves of a weight for the second: its curve and what errors in it cost, of few bytes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from waterfill.compression.allocation.curve import Point
from waterfill.importance import Importance
from waterfill.storage.atomic import AtomicFile

_ABOUT = "about"


@dataclass(frozen=True, eq=False)
class Measured:
    """Of a weight: points of its curve by k at prices 4^k; the energy of its rows, costs times the trace of A, [rows],
    where A is measured anew in the second pass, else its importance; both None where no input reaches it. ratio: the
    logarithm to base 2 of the measured over the assumed cost. about: remarks, as of a `Measurement`.
    """

    points: Mapping[int, Point]
    energy: Tensor | None = None
    importance: Importance | None = None
    ratio: float | None = None
    about: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class MeasuredStore:
    """Measured weights of each stretch, by name; in memory, or each stretch in a file of a folder."""

    folder: Path | None
    _kept: dict[str, dict[str, Measured]] = field(default_factory=dict)

    def put(self, stretch: str, weights: dict[str, Measured]) -> None:
        """Keep the weights of a stretch."""
        if self.folder is None:
            self._kept[stretch] = weights
            return
        tensors, about = dict[str, Tensor](), dict[str, Any]()
        for i, (name, one) in enumerate(weights.items()):
            tensors |= {f"{i}.{key}": value.contiguous() for key, value in _tensors(one).items()}
            points = {k: [point.bits, point.distortion] for k, point in one.points.items()}
            damping = None if one.importance is None else [one.importance.damping, one.importance.kernel]
            about[name] = [points, damping, one.ratio, dict(one.about)]
        with AtomicFile(self._path(stretch), force=True, shared=True) as out:
            save_file(tensors, out.temporary, {_ABOUT: json.dumps(about)})
            out.finish()

    def get(self, stretch: str) -> dict[str, Measured] | None:
        """The weights of a stretch; None where it is not measured yet."""
        if self.folder is None:
            return self._kept.get(stretch)
        try:
            with safe_open(self._path(stretch), framework="pt") as file:
                about = json.loads((file.metadata() or {})[_ABOUT])
                names = file.keys()
                tensors = {key: file.get_tensor(key) for key in names}
        except (OSError, SafetensorError, KeyError, ValueError):
            return None  # not there, or cut short by a crash
        return {name: _restored(note, i, tensors) for i, (name, note) in enumerate(about.items())}

    def _path(self, stretch: str) -> Path:
        assert self.folder is not None
        return self.folder / f"measured-{stretch}.safetensors"


def _tensors(one: Measured) -> dict[str, Tensor]:
    found = {} if one.energy is None else {"energy": one.energy}
    if one.importance is not None:
        found |= {"rows": one.importance.rows, "diagonal": one.importance.diagonal}
        found |= {} if one.importance.gram is None else {"gram": one.importance.gram}
    return found


def _restored(note: list[Any], i: int, tensors: Mapping[str, Tensor]) -> Measured:
    points, damping, ratio, about = note
    own = {key.partition(".")[2]: value.clone() for key, value in tensors.items() if key.startswith(f"{i}.")}
    importance = None
    if damping is not None:
        costs = own["rows"], own["diagonal"], own.get("gram")
        importance = Importance(*costs, kernel=tuple(damping[1]), damping=float(damping[0]))
    curve = {int(k): Point(*point) for k, point in points.items()}
    return Measured(curve, own.get("energy"), importance, ratio, about)


def energy_of(importance: Importance) -> Tensor:
    """The energy of the rows of an importance with a Gram matrix, [rows] float64."""
    assert importance.gram is not None
    return importance.rows.double() * float(importance.gram.diagonal().double().sum())


def with_energy(energy: Tensor, importance: Importance) -> Importance:
    """An importance with this energy of its rows, and the A of another."""
    assert importance.gram is not None
    trace = float(importance.gram.diagonal().double().sum())
    return replace(importance, rows=energy.double() / max(trace, torch.finfo(torch.float32).tiny))
