"""Where finished importance is kept: in memory, or one file a weight in a folder, from which a later run goes on."""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
    """The importance of a weight, or None, and what there is to say about it."""

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
        """The shelf of a folder, what it holds included. Raises PlanMismatch if it is another model's."""
        if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
            raise BadInput(f"the cache {folder} is a file; name a folder, which need not be there yet")
        if folder is not None:
            Journal.begin(Path(folder), plan)
        shelf = cls(names, None if folder is None else Path(folder))
        for name in names:
            try:
                if folder is not None:
                    shelf._kept[name] = Measurement(None, shelf._read(name)[1])
            except (OSError, SafetensorError):
                continue  # not there, or cut short by a crash
        return shelf

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    def about(self, name: str) -> dict[str, str]:
        """Remarks on a weight."""
        return self._kept[name].about

    def put(self, name: str, found: Measurement) -> None:
        """Keep what was found of a weight."""
        if self.folder is None:
            self._kept[name] = found
            return
        about, values = dict(found.about), dict[str, Tensor]()
        if found.importance is not None:
            value = found.importance
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
            found = self._kept[name].importance
            assert found is not None
            return found
        values, about = self._read(name)
        kernel = tuple(map(int, about["kernel"].split()))
        halves = (values["first"], values["second"]) if "first" in values else None
        damping = float(about["damping"])
        return Importance(values["rows"], values["diagonal"], values.get("gram"), kernel, damping, halves)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{list(self.names).index(name)}.safetensors"

    def _read(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        with safe_open(self._path(name), framework="pt") as file:
            values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - an open file is no mapping
            return values, dict(file.metadata() or {})


def fingerprint(weights: Mapping[str, Tensor], options: Mapping[str, Any], batches: Iterable[Any]) -> dict[str, Any]:
    """What a cache belongs to: names, shapes and samples of the weights, the options, and the batches.

    Of a list of batches the first counts; a loader, which may shuffle, is known by its length alone.
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
    """A number for what the tensors of a batch hold."""
    if isinstance(batch, Tensor):
        return _mark(batch)
    items = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return zlib.crc32(" ".join(str(_marks(item)) for item in items).encode())


def _mark(value: Tensor) -> int:
    flat = value.detach().reshape(-1)
    step = max(1, flat.numel() // _SAMPLED)
    return zlib.crc32(octets(flat[::step].to(torch.float32)).numpy().tobytes())
