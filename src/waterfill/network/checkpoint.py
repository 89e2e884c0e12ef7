"""A `.safetensors` checkpoint, of one file or many with an index, read one tensor at a time."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from waterfill.dtypes import octets
from waterfill.errors import BadInput, CorruptFile
from waterfill.network.stored import Stored, read_header
from waterfill.storage.paths import check_source

INDEX = ".safetensors.index.json"
"""The suffix of an index of shards."""
_ENTRIES_COMPARED_FIRST = 1 << 16  # bytes of two tensors that are compared before the whole of them is read


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint, tied ones once. aliases: names whose content another tensor holds already. metadata:
    the texts in the headers of its files."""

    files: tuple[Path, ...]
    tensors: dict[str, Stored]
    aliases: dict[str, str]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def original_bytes(self) -> int:
        """Bytes of all tensors, tied ones once."""
        return sum(stored.size for stored in self.tensors.values())


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
    metadata: dict[str, str] = {}
    for file in files:
        check_source(file)
        in_file, texts = read_header(file)
        metadata = texts | metadata
        for stored in in_file:
            if stored.name in tensors:
                raise BadInput(f"tensor {stored.name!r} is both in {tensors[stored.name].file.name} and {file.name}")
            tensors[stored.name] = stored
    if expected is not None:
        _check_index(path, expected, tensors)
    aliases = _tied(tensors)
    kept = {name: stored for name, stored in tensors.items() if name not in aliases}
    return Checkpoint(tuple(files), kept, aliases, metadata)


def _in_folder(folder: Path) -> Path:
    """The index in a folder, or the only file of tensors in it."""
    indexes = sorted(path for path in folder.iterdir() if path.name.endswith(INDEX))
    candidates = indexes or sorted(folder.glob("*.safetensors"))
    if len(candidates) > 1 and folder / f"model{INDEX}" in candidates:
        return folder / f"model{INDEX}"
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        what = f"{len(candidates)} {'indexes of shards' if indexes else '.safetensors files and no index of shards'}"
        raise BadInput(f"{folder} holds {what}, such as {candidates[0].name}; name the one to compress")
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    advice = f"{pickled[0]} is pickled: save its tensors as .safetensors first" if pickled else "is it the right one?"
    raise BadInput(f"{folder} holds 0 .safetensors files and no index of shards; {advice}")


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


def _tied(tensors: dict[str, Stored]) -> dict[str, str]:
    """Names of tensors with two dimensions or more that equal an earlier one bit by bit."""
    names_by_content: dict[tuple[tuple[int, ...], torch.dtype, bytes], list[str]] = {}
    count = Counter((stored.shape, stored.dtype) for stored in tensors.values())
    aliases: dict[str, str] = {}
    for name, stored in tensors.items():
        if len(stored.shape) < 2 or not stored.size or count[stored.shape, stored.dtype] < 2:
            continue
        alike = names_by_content.setdefault(
            (stored.shape, stored.dtype, hashlib.sha256(stored.start(_ENTRIES_COMPARED_FIRST)).digest()), []
        )
        twin = next((other for other in alike if _same(tensors[other], stored)), None)
        if twin is None:
            alike.append(name)
        else:
            aliases[name] = twin
    return aliases


def _same(a: Stored, b: Stored) -> bool:
    """Whether two tensors have the same bytes: numbers may be equal and their signs differ."""
    return torch.equal(octets(a.load()), octets(b.load()))
