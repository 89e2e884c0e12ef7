"""Dense `.safetensors`: a lone file, or the folder of a transformers model in shards."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from waterfill.dtypes import dtype_name
from waterfill.errors import BadInput
from waterfill.export.how import How, Network
from waterfill.export.place import MARK, new_folder
from waterfill.export.result import Exported, Row
from waterfill.export.safetensors import SafetensorsWriter, Slot, slots_of
from waterfill.export.source import Source
from waterfill.model.install import converted
from waterfill.part import Part

NAME = "safetensors"
EXTRA = ""
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def can(part: Part) -> str | None:
    """Why the format cannot hold a part: it holds everything, dense."""
    return None


@dataclass(frozen=True)
class Held:
    """A tensor of a folder: where it goes, and what gives its values when its turn comes."""

    slot: Slot
    make: Callable[[], Tensor]


def write(source: Source, target: "str | Path", network: Network | None, how: How) -> Exported:
    """A lone file where `target` ends in .safetensors, else a folder. Raises OutputExists, BadInput, CorruptFile."""
    dtype = dtype_named(how.dtype)
    slots = slots_of(source, dtype)
    helds = [Held(slot, _restorer(source, slot)) for slot in slots]
    rows = [Row(slot.name, f"dense, {dtype_name(slot.dtype)}", slot.bytes) for slot in slots]
    if os.fspath(target).endswith(".safetensors"):
        with SafetensorsWriter(os.fspath(target), slots, how.force, source.metadata) as out:
            for held in helds:
                out.add(held.make())
            return Exported(Path(target), NAME, out.finish(), rows)
    with new_folder(target, how.force, source.folder) as made:
        size = write_shards(made, helds, how.shard)
        write_beside(made, source, None, dtype)
    return Exported(Path(target), NAME, size, rows)


def dtype_named(name: str | None) -> torch.dtype | None:
    """A floating-point type by its name. Raises BadInput."""
    if name is not None and name not in _DTYPES:
        raise BadInput(f"dtype={name!r} is not one of {', '.join(_DTYPES)}")
    return None if name is None else _DTYPES[name]


def write_shards(folder: Path, tensors: list[Held], most: int) -> int:
    """Files of at most so many bytes, with an index where there are several. Returns the bytes of all files."""
    shards = _shards(sorted(tensors, key=lambda held: held.slot.name), most)
    single = len(shards) == 1
    weight_map: dict[str, str] = {}
    size = 0
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if single else f"model-{number:05}-of-{len(shards):05}.safetensors"
        order = sorted(shard, key=lambda held: (-held.slot.dtype.itemsize, held.slot.name))
        with SafetensorsWriter(str(folder / name), [held.slot for held in order], metadata=MARK) as out:
            for held in order:
                out.add(held.make())
            size += out.finish()
        weight_map |= {held.slot.name: name for held in order}
    if not single:
        index = {"metadata": {"total_size": sum(held.slot.bytes for held in tensors)}, "weight_map": weight_map}
        _write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2))
    return size


def write_beside(
    folder: Path, source: Source, quantization: Mapping[str, object] | None, dtype: torch.dtype | None = None
) -> None:
    """What a transformers model has beside its weights, where the source is one: config, tokenizer, all else."""
    if source.folder is None:
        return
    from waterfill.hf.folder import CARD, CONFIG, copy_beside, read_config

    copy_beside(source.folder, folder)
    config = {key: value for key, value in read_config(source.folder).items() if key != "quantization_config"}
    if dtype is not None:
        config = {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": dtype_name(dtype)}
    if quantization is not None:
        config |= {"quantization_config": dict(quantization)}
    _write_text(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False))
    card = folder / CARD
    if card.exists():  # what it says of model.wf is not so here
        text = card.read_text(encoding="utf-8", errors="replace")
        _write_text(card, text.partition("\n## Compressed with waterfill\n")[0].rstrip())


def _restorer(source: Source, slot: Slot) -> Callable[[], Tensor]:
    return lambda: converted(slot.name, source.tensor(slot.source), slot.dtype)


def _shards(tensors: list[Held], most: int) -> list[list[Held]]:
    """Tensors in order, cut where the next one would be beyond the most bytes."""
    shards: list[list[Held]] = [[]]
    filled = 0
    for held in tensors:
        if shards[-1] and filled + held.slot.bytes > most:
            shards.append([])
            filled = 0
        shards[-1].append(held)
        filled += held.slot.bytes
    return shards


def _write_text(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def dense_slot(name: str, source: Source, dtype: torch.dtype | None) -> Held:
    """A tensor as it is, or in another floating-point type."""
    own = source.owners[name]
    layout = source.layouts[own]
    kept = dtype if dtype is not None and layout.dtype.is_floating_point else layout.dtype
    slot = Slot(name, layout.shape, kept, own)
    return Held(replace(slot), _restorer(source, slot))
