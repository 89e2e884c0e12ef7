"""Checks of paths to read and to write, made before any work."""

import errno
import os
import stat
from pathlib import Path

from waterfill.errors import BadInput, OutputExists

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_source(path: str | os.PathLike[str]) -> None:
    """Raise BadInput for what is there but can only be read once, or never ends: pipes, devices, sockets."""
    kind = _special(path)
    if kind:
        raise BadInput(f"{path} is {kind}, not a file: it cannot be read in any order; write its content into a file")


def check_target(path: str | os.PathLike[str], force: bool = False) -> Path:
    """The place where a file will be written: a link stays a link, what it points to is replaced.

    Raises OutputExists if it is taken (without `force`) or is no file, BadInput if its folder is missing, and an
    OSError of the system if the folder cannot be written to.
    """
    place = Path(os.path.realpath(path))
    if place.is_dir() or os.fspath(path).endswith(os.sep):
        raise OutputExists(f"{path} is a folder; name a file in it")
    kind = _special(place)
    if kind:
        raise OutputExists(f"{path} is {kind}, which a file never replaces; name a file")
    if place.exists() and not force:
        raise OutputExists(f"{path} exists; choose another output, or ask to overwrite it (force=True, --force)")
    if not place.parent.is_dir():
        raise BadInput(f"the folder {place.parent} does not exist; create it or choose another output")
    if not os.access(place.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place.parent))
    return place


def _special(path: str | os.PathLike[str]) -> str | None:
    """The kind of a path that is neither a file nor a folder, in words; None for those, and if nothing is there."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    return next((words for test, words in _KINDS if test(mode)), None)
