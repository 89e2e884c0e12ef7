"""A folder of an export in place of its target, at once and whole, or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from waterfill.errors import BadInput, CorruptFile, OutputExists
from waterfill.network.stored import read_header
from waterfill.storage.atomic import claimed, sync_folder

MARK = {"waterfill": "export"}
"""Texts in the headers of the files of our folders: only a folder that has them is ever replaced."""


def check_folder(path: "str | Path", force: bool, source: Path | None = None) -> Path:
    """The place where a folder will be written.

    Raises OutputExists if it is taken, with `force` too unless an export of ours is there; BadInput if the folder
    around it is missing, or if it lies in `source`, the folder that is read.
    """
    place = Path(os.path.realpath(path))
    if source is not None and Path(os.path.realpath(source)) in (place, *place.parents):
        raise BadInput(f"{path} lies in {source}, which is read; choose an output beside it")
    if os.path.lexists(place) and not force:
        raise OutputExists(f"{path} exists; choose another output, or ask to overwrite it (force=True, --force)")
    if os.path.lexists(place) and not _is_ours(place):
        raise OutputExists(f"{path} is no folder that an export wrote, which is never replaced; choose another output")
    if not place.parent.is_dir():
        raise BadInput(f"the folder {place.parent} does not exist; create it or choose another output")
    return place


@contextlib.contextmanager
def new_folder(path: "str | Path", force: bool, source: Path | None = None) -> Iterator[Path]:
    """A block that fills the folder it is given, which takes its place when the block ends without an error.

    Raises as `check_folder`, and OutputExists if another process is at it; what the system reports, such as a full
    disk, passes through and leaves nothing behind.
    """
    place = check_folder(path, force, source)
    with claimed(place):
        made = place.with_name(f"{place.name}.made")
        before = place.with_name(f"{place.name}.before")
        for left in (made, before):
            if os.path.lexists(left):
                raise OutputExists(f"{left} is in the way, where the folder is made; move it elsewhere")
        made.mkdir()
        try:
            yield made
            check_folder(path, force, source)
            if place.exists():
                os.rename(place, before)
            os.rename(made, place)
            sync_folder(place.parent)
            shutil.rmtree(before, ignore_errors=True)
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _is_ours(place: Path) -> bool:
    if not place.is_dir():
        return False
    files = sorted(place.glob("*.safetensors"))
    with contextlib.suppress(BadInput, CorruptFile, OSError):
        return bool(files) and MARK.items() <= read_header(files[0])[1].items()
    return False
