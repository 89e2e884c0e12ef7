"""A cache of finished importance: in memory, or in a folder with a file for each weight, reusable by later runs."""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from waterfill.dtypes import octets
from waterfill.errors import BadInput
from waterfill.importance import Importance
from waterfill.network.running.batches import count_of
from waterfill.storage.atomic import AtomicFile
from waterfill.storage.work_directory import Journal

_SAMPLED = 1 << 12  # entries of a tensor that its fingerprint is taken from


@dataclass(frozen=True, eq=False)
class Measurement:
    """The importance of a weight, or None, and remarks on it."""

    importance: Importance | None
    about: dict[str, str]


@dataclass(frozen=True, eq=False)
class ImportanceCache:
    """Importance by the names of weights. folder: None keeps all in memory."""

    names: Sequence[str]
    folder: Path | None
    _kept: dict[str, Measurement] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | None, names: Sequence[str], plan: Mapping[str, Any]) -> "ImportanceCache":
        """The cache in a folder, with what it holds; of each file only the header is read.

        Raises BadInput if the folder is a file, PlanMismatch if the cache is another model's.
        """
        if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
            raise BadInput(f"the cache {folder} is a file; name a folder, which need not be there yet")
        if folder is not None:
            Journal.begin(Path(folder), plan)
        cache = cls(names, None if folder is None else Path(folder))
        for name in names if folder is not None else ():
            try:
                with safe_open(cache._path(name), framework="pt") as file:  # refuses a file of another length
                    cache._kept[name] = Measurement(None, dict(file.metadata() or {}))
            except (OSError, SafetensorError):
                continue  # not there, or cut short by a crash
        return cache

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    def about(self, name: str) -> dict[str, str]:
        """Remarks on a weight."""
        return self._kept[name].about

    def put(self, name: str, measurement: Measurement) -> None:
        """Keep the measurement of a weight."""
        if self.folder is None:
            self._kept[name] = measurement
            return
        about, values = dict(measurement.about), dict[str, Tensor]()
        if measurement.importance is not None:
            value = measurement.importance
            values = {"rows": value.rows, "diagonal": value.diagonal}
            values |= {} if value.gram is None else {"gram": value.gram}
            values |= {} if value.halves is None else dict(zip(("first", "second"), value.halves, strict=True))
            about |= {"damping": repr(value.damping), "kernel": " ".join(map(str, value.kernel))}
        path = self._path(name)
        with AtomicFile(path, force=True, shared=True) as out:
            save_file({key: value.contiguous() for key, value in values.items()}, out.temporary, about)
            out.finish()
        self._kept[name] = Measurement(None, about)

    def get(self, name: str) -> Importance:
        """The importance of a weight, memory-mapped where it is on disk."""
        if self.folder is None:
            importance = self._kept[name].importance
            assert importance is not None
            return importance
        values, about = self._read(name)
        kernel = tuple(map(int, about["kernel"].split()))
        halves = (values["first"], values["second"]) if "first" in values else None
        damping = float(about["damping"])
        return Importance(values["rows"], values["diagonal"], values.get("gram"), kernel, damping, halves)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{self._positions[name]}.safetensors"

    @cached_property
    def _positions(self) -> dict[str, int]:
        """The number of each weight, which names its file."""
        return {name: i for i, name in enumerate(self.names)}

    def _read(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        with safe_open(self._path(name), framework="pt") as file:
            values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - an open file is no mapping
            return values, dict(file.metadata() or {})


def fingerprint(weights: Mapping[str, Tensor], options: Mapping[str, Any], batches: Iterable[Any]) -> dict[str, Any]:
    """What identifies a cache: names, shapes and samples of the weights, the options, and the batches.

    Of a list of batches the first one is sampled; a loader, which may shuffle, counts by its length only.
    """
    marks = [f"{name} {list(value.shape)} {value.dtype} {_mark(value)}" for name, value in weights.items()]
    count = count_of(batches)
    first = batches[0] if isinstance(batches, list | tuple) and batches else None
    return {
        "weights": zlib.crc32("\n".join(marks).encode()),
        "batches": None if count is None else f"{count}, {_marks(first)}",
        **options,
    }


def _marks(batch: Any) -> int:
    """A checksum of samples of the tensors of a batch."""
    if isinstance(batch, Tensor):
        return _mark(batch)
    items = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return zlib.crc32(" ".join(str(_marks(item)) for item in items).encode())


def _mark(value: Tensor) -> int:
    flat = value.detach().reshape(-1)
    step = max(1, flat.numel() // _SAMPLED)
    return zlib.crc32(octets(flat[::step].to(torch.float32)).numpy().tobytes())
