"""A model that was loaded from a compressed folder, written as one again: the same file, nothing decompressed."""

import shutil
from pathlib import Path
from typing import Any

from waterfill.errors import BadInput, OutputExists
from waterfill.hf.folder import WEIGHTS, write_card
from waterfill.storage.atomic import AtomicFile


def save(model: Any, folder: "str | Path") -> None:
    """Write a folder with the config, the generation config and the weights of a loaded model, dense or packed.

    Files of these names that are there are replaced, as transformers does. Raises BadInput if the model was not loaded
    from a compressed folder, or if its weights or their file have changed since, OutputExists where other weights lie.
    """
    origin = getattr(getattr(model, "hf_quantizer", None), "origin", None)
    if origin is None:
        raise BadInput("the model does not come from a compressed folder; compress its own with compress_folder")
    source, target = origin.check(model), Path(folder)
    if target.is_file():
        raise OutputExists(f"{target} is a file; name a folder")
    other = sorted(path.name for path in target.glob("*.safetensors*")) if target.is_dir() else []
    if other:
        raise OutputExists(f"{target} holds {other[0]}, weights that could be taken for these; choose another folder")
    target.mkdir(parents=True, exist_ok=True)
    place = target / WEIGHTS
    if not (place.exists() and place.samefile(source)):
        with AtomicFile(place, force=True, shared=True) as out, open(source, "rb") as weights:
            shutil.copyfileobj(weights, out.file)
            out.finish()
    model.config.save_pretrained(target)
    if model.can_generate():
        model.generation_config.save_pretrained(target)
    if not (target / "README.md").exists():
        write_card(target, target.name)
