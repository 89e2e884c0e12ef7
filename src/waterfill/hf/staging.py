"""A folder in place of its target, at once and whole, or not at all; finished weights outlive a killed process."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from waterfill.errors import BadInput, OutputExists
from waterfill.hf.folder import is_compressed
from waterfill.storage.atomic import OWN, claimed, sync_folder

_MADE, _JOURNAL, _BEFORE = "made", "weights", "before"


@dataclass(frozen=True)
class Staging:
    """Where a folder is made. made: what will be the folder. journal: for the weights that are finished."""

    work: Path

    @property
    def made(self) -> Path:
        """What will be the folder."""
        return self.work / _MADE

    @property
    def journal(self) -> Path:
        """The work directory of the weights."""
        return self.work / _JOURNAL


def check_folder_target(path: "str | Path", force: bool, source: "str | Path | None" = None) -> Path:
    """The place where a folder will be written.

    Raises OutputExists if it is taken, with `force` too unless a compressed folder of ours is there; BadInput if the
    folder around it is missing, or if it lies in `source`, the folder that is read.
    """
    place = Path(os.path.realpath(path))
    if source is not None and Path(os.path.realpath(source)) in place.parents:
        raise BadInput(f"{path} lies in {source}, which is read; choose an output beside it")
    if place.is_dir() and force and not is_compressed(place):
        raise OutputExists(f"{path} is a folder that waterfill did not write, which is never replaced; choose another")
    if os.path.lexists(place) and not (force and place.is_dir()):
        raise OutputExists(f"{path} exists; choose another output, or ask to overwrite it (force=True, --force)")
    if not place.parent.is_dir():
        raise BadInput(f"the folder {place.parent} does not exist; create it or choose another output")
    return place


@contextlib.contextmanager
def staged(target: "str | Path", force: bool, source: "str | Path") -> Iterator[Staging]:
    """A block that makes a folder, which takes its place when the block ends without an error.

    Weights that were finished stay in `journal` when it does not. Raises OutputExists, BadInput as
    `check_folder_target`, and OutputExists if another process is at it.
    """
    place = check_folder_target(target, force, source)
    staging = Staging(place.with_name(place.name + ".work"))
    with claimed(place):
        _begin(staging, place)
        try:
            yield staging
            _flush(staging.made)
            _take_place(staging, place, force)
        finally:
            shutil.rmtree(staging.made, ignore_errors=True)
            with contextlib.suppress(OSError):
                staging.work.rmdir()


def _begin(staging: Staging, place: Path) -> None:
    """A new folder to make, in a work directory that may be there from before."""
    staging.work.mkdir(exist_ok=True)
    known = {_MADE, _JOURNAL, _BEFORE}
    strange = sorted(
        file.name for file in staging.work.iterdir() if file.name not in known and not OWN.match(file.name)
    )
    if strange:
        raise OutputExists(f"{staging.work} is where the folder is made, and holds {strange[0]}; move that elsewhere")
    before = staging.work / _BEFORE
    if before.exists() and not place.exists():  # killed between the two steps of `_take_place`
        os.rename(before, place)
    for left in (staging.made, before):
        shutil.rmtree(left, ignore_errors=True)
    staging.made.mkdir()


def _take_place(staging: Staging, place: Path, force: bool) -> None:
    check_folder_target(place, force)
    before = staging.work / _BEFORE
    if place.exists():
        os.rename(place, before)
    os.rename(staging.made, place)
    sync_folder(place.parent)
    shutil.rmtree(before, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Bring every file of a folder to disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
