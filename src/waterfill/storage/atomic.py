"""Atomic files: written beside their target, flushed to disk, renamed; and locks against other writers.

A temporary file is named after its target and locked by its writer. The lock ends with the process, however that ends:
a file that is not locked is a leftover, and the next run in the folder removes it. Where a file system has no locks,
names are random and nothing is removed.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

from waterfill.errors import OutputExists
from waterfill.storage.paths import check_target

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

OWN = re.compile(r"\.waterfill-[0-9a-f]{16}\.(tmp|lock)")
"""The names of temporary files and of locks."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_TRIES, _PAUSE = 5, 0.02  # a search for leftovers holds a lock for an instant; seconds


class Taken(Exception):
    """Another process holds the lock of a file."""


class NoLocks(Exception):
    """The file system knows no locks."""


class AtomicFile:
    """A file in place of its target, at once and whole, or not at all.

    Use it in a `with` block: write to `file`, or to the path `temporary`, then `finish`; leaving the block before that
    removes the temporary file and leaves the target as it was. shared: several processes may replace the target, each
    by its own whole file, and the last one stays; else there is one writer at a time. Raises OutputExists, BadInput and
    OSError as `check_target`; errors of the system (a full disk) pass through.
    """

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False, shared: bool = False) -> None:
        self._said, self._force, self._shared = path, force, shared
        self._path = check_target(path, force)
        self.temporary = _beside(self._path, secrets.token_hex(8) if shared else _mark(self._path), "tmp")

    def __enter__(self) -> Self:
        if not self._shared:
            remove_leftovers(self._path.parent)
        try:
            self.file = _locked(self.temporary)
        except Taken:
            raise _busy(self._said) from None
        except NoLocks:
            self.temporary.unlink(missing_ok=True)
            self.temporary = _beside(self._path, secrets.token_hex(8), "tmp")
            self.file = open(self.temporary, "x+b")
        self.file.truncate(0)
        return self

    def finish(self) -> int:
        """Bring the file to disk, move it to its place, and return its size in bytes."""
        self.file.flush()
        with open(self.temporary, "rb") as written:  # by now it may be another file than the one that was opened
            os.fsync(written.fileno())
            size = os.fstat(written.fileno()).st_size
        check_target(self._said, self._force)
        os.replace(self.temporary, self._path)
        self.file.close()
        sync_folder(self._path.parent)
        return size

    def __exit__(self, *_: object) -> None:
        self.temporary.unlink(missing_ok=True)  # while it is locked: later it could be another's
        with contextlib.suppress(OSError):  # on a full disk closing fails once more; the first error is the one to show
            self.file.close()


def write_whole(path: Path, data: bytes) -> None:
    """The file `path` with this content, in place of an earlier one, whatever happens meanwhile."""
    with AtomicFile(path, force=True, shared=True) as out:
        out.file.write(data)
        out.finish()


@contextlib.contextmanager
def claimed(path: str | os.PathLike[str]) -> Iterator[None]:
    """A block in which no other process works on this output. Raises OutputExists, naming it, if one does."""
    target = Path(os.path.realpath(path))
    lock = _beside(target, _mark(target), "lock")
    remove_leftovers(target.parent)
    try:
        file = _locked(lock)
    except Taken:
        with contextlib.suppress(OSError):
            raise _busy(path, lock.read_text(encoding="ascii", errors="replace")) from None
        raise _busy(path) from None
    except NoLocks:
        lock.unlink(missing_ok=True)
        yield
        return
    try:
        file.truncate(0)
        file.write(f"{os.getpid()}".encode())
        file.flush()
        yield
    finally:
        lock.unlink(missing_ok=True)
        file.close()


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and locks of processes that are no more; nothing else is touched, no error raised."""
    with contextlib.suppress(OSError):
        for name in [entry.name for entry in os.scandir(folder) if OWN.fullmatch(entry.name)]:
            with contextlib.suppress(OSError, Taken, NoLocks), _locked(folder / name, make=False):
                (folder / name).unlink()


def held(path: Path) -> BinaryIO | None:
    """The lock of an existing file; None if a process has it, or that is unknown."""
    try:
        return _locked(path, make=False)
    except (OSError, Taken, NoLocks):
        return None


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut where the system can; the file is whole and in its place either way."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _locked(path: Path, make: bool = True) -> BinaryIO:
    """A file, made if it is not there, opened and locked. Raises Taken, NoLocks, OSError."""
    for attempt in range(_TRIES):
        flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | (os.O_CREAT if make else 0)
        file = os.fdopen(os.open(path, flags, 0o666), "r+b")
        try:
            _lock(file)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                    return file
        except BlockingIOError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()  # it was another's, or it was removed before it was locked
        time.sleep(_PAUSE * (attempt + 1 < _TRIES) * make)
    raise Taken


def _lock(file: BinaryIO) -> None:
    if fcntl is None:
        raise NoLocks
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise NoLocks from error
        raise


def _beside(path: Path, mark: str, suffix: str) -> Path:
    return path.with_name(f".waterfill-{mark}.{suffix}")


def _mark(path: Path) -> str:
    """A short name for a target, whatever its own name and length."""
    return hashlib.sha256(path.name.encode(errors="surrogateescape")).hexdigest()[:16]


def _busy(path: str | os.PathLike[str], owner: str = "") -> OutputExists:
    who = f"another process ({owner})" if owner else "another process"
    return OutputExists(f"{path} is being written by {who}; wait until it has ended, or choose another output")
