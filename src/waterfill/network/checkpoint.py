"""A `.safetensors` checkpoint, of one file or many with an index, read one tensor at a time."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from waterfill.dtypes import octets
from waterfill.errors import BadInput, CorruptFile
from waterfill.storage.paths import check_source

INDEX = "model.safetensors.index.json"
_COMPARED = 1 << 16  # entries of two tensors that are compared before the whole of them is read


@dataclass(frozen=True)
class Stored:
    """Where a tensor is kept, and what the header of its file says of it."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    def load(self) -> Tensor:
        """The tensor, mapped from its file; the mapping goes when the tensor does."""
        try:
            with safe_open(self.file, framework="pt") as src:
                return src.get_tensor(self.name)
        except (SafetensorError, OSError) as error:
            raise CorruptFile(f"{self.file}: tensor {self.name!r} cannot be read: {error}") from error


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint, tied ones once. aliases: names whose content another tensor holds already."""

    files: tuple[Path, ...]
    tensors: dict[str, Stored]
    aliases: dict[str, str]

    @property
    def original_bytes(self) -> int:
        """Bytes of all tensors, tied ones once."""
        return sum(_numel(t.shape) * t.dtype.itemsize for t in self.tensors.values())


def open_checkpoint(source: "str | Path") -> Checkpoint:
    """Read the headers of a `.safetensors` file, an index of shards, or the folder that holds one of them.

    Raises BadInput for what is missing, twice there or no checkpoint at all, CorruptFile for a damaged header.
    """
    path = Path(source)
    if path.is_dir():
        path = _in_folder(path)
    if not path.exists():
        raise BadInput(f"{path} does not exist; give a .safetensors file, an index of shards, or the folder of one")
    check_source(path)
    files, expected = _shards(path) if path.suffix == ".json" else ([path], None)
    tensors: dict[str, Stored] = {}
    for file in files:
        check_source(file)
        for stored in _header(file):
            if stored.name in tensors:
                raise BadInput(f"tensor {stored.name!r} is both in {tensors[stored.name].file.name} and {file.name}")
            tensors[stored.name] = stored
    if expected is not None:
        _check_index(path, expected, tensors)
    aliases = _tied(tensors)
    kept = {name: stored for name, stored in tensors.items() if name not in aliases}
    return Checkpoint(tuple(files), kept, aliases)


def _in_folder(folder: Path) -> Path:
    single = sorted(folder.glob("*.safetensors"))
    if (folder / INDEX).exists():
        return folder / INDEX
    if len(single) != 1:
        raise BadInput(f"{folder} holds {len(single)} .safetensors files and no {INDEX}; name the file to compress")
    return single[0]


def _shards(index: Path) -> tuple[list[Path], dict[str, str]]:
    try:
        expected = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(expected.values()))
        files = [index.parent / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFile(f"{index} is no index of shards (a JSON object with a weight_map): {error!r}") from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise BadInput(f"{index} names the shard {outside[0]!r}, which does not lie beside it")
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise BadInput(
            f"{index.parent}: shard {missing[0]} is missing ({len(missing)} of {len(files)}); fetch it again"
        )
    return files, expected


def _check_index(index: Path, expected: dict[str, str], tensors: dict[str, Stored]) -> None:
    lost = [n for n, file in expected.items() if n not in tensors or tensors[n].file.name != file]
    extra = [n for n in tensors if n not in expected]
    if lost or extra:
        what = f"{lost[0]!r} is not in {expected[lost[0]]}" if lost else f"{extra[0]!r} is in no entry of the index"
        raise BadInput(f"{index} and its shards disagree: {what}; fetch the checkpoint again")


def _header(file: Path) -> list[Stored]:
    try:
        with safe_open(file, framework="pt") as src:
            found = []
            for name in src.keys():  # noqa: SIM118 - not a dict
                view = src.get_slice(name)
                found.append(
                    Stored(name, file, tuple(view.get_shape()), _dtype(view.get_dtype(), name, src.get_tensor))
                )
            return found
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise CorruptFile(f"{file} is not a readable .safetensors file: {error}") from error


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _dtype(said: str, name: str, load: Callable[[str], Tensor]) -> torch.dtype:
    """The dtype that a header names; for rare ones, that of the tensor itself."""
    return _DTYPES[said] if said in _DTYPES else load(name).dtype


def _tied(tensors: dict[str, Stored]) -> dict[str, str]:
    """Names of tensors with two dimensions or more that equal an earlier one entry by entry."""
    seen: dict[tuple[tuple[int, ...], torch.dtype, bytes], list[str]] = {}
    count = Counter((stored.shape, stored.dtype) for stored in tensors.values())
    aliases: dict[str, str] = {}
    for name, stored in tensors.items():
        if len(stored.shape) < 2 or not _numel(stored.shape) or count[stored.shape, stored.dtype] < 2:
            continue
        alike = seen.setdefault((stored.shape, stored.dtype, _start(stored)), [])
        twin = next((other for other in alike if torch.equal(tensors[other].load(), stored.load())), None)
        if twin is None:
            alike.append(name)
        else:
            aliases[name] = twin
    return aliases


def _start(stored: Stored) -> bytes:
    """A digest of the first entries."""
    flat = stored.load().reshape(-1)[:_COMPARED]
    return hashlib.sha256(octets(flat).numpy().tobytes()).digest()


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
