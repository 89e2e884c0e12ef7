"""Writing a file: blob by blob into a temporary file beside the target, which it replaces only when it is whole."""

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any, Self
from zlib import crc32

from waterfill.errors import BadInput, CorruptFile, OutputExists
from waterfill.storage.index import (
    FEATURES,
    HEAD,
    MAGIC,
    MAX_BYTES,
    NO_CHUNK,
    TAIL,
    VERSION,
    Index,
    name_problem,
    starts_chunk,
    tail_of,
)


class FileWriter:
    """Writes one file; memory holds names, lengths and checksums, never the blobs.

    Use it in a `with` block: leaving the block before `finish` has returned removes the temporary file and leaves
    `path` as it was. Raises OutputExists if `path` is taken (without `force`), BadInput if its folder is missing;
    what the system says (a full disk) passes through as OSError.
    """

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        self._path = Path(os.path.realpath(path))  # a link stays a link: what it points to is replaced
        self._force = force
        self._temporary = self._path.with_name(f".waterfill-{secrets.token_hex(8)}.tmp")
        self._head = HEAD.pack(MAGIC, VERSION, FEATURES)
        self._lengths: dict[str, int] = {}
        self._checksums: list[int] = []
        self._filled = NO_CHUNK
        self._refuse_taken()
        if not self._path.parent.is_dir():
            raise BadInput(f"the folder {self._path.parent} does not exist; create it or choose another output")

    def __enter__(self) -> Self:
        self._file = open(self._temporary, "xb")
        self._file.write(self._head)
        return self

    def add(self, name: str, data: bytes) -> None:
        """Append one blob. Raises BadInput for a name that is taken or cannot be stored."""
        problem = "is taken" if name in self._lengths else name_problem(name)
        if problem:
            raise BadInput(f"the name {name[:80]!r} {problem}; rename the weight")
        self._file.write(data)
        if starts_chunk(self._filled, len(data)):
            self._checksums.append(0)
            self._filled = 0
        self._checksums[-1] = crc32(data, self._checksums[-1])
        self._filled += len(data)
        self._lengths[name] = len(data)

    def finish(self, manifest: dict[str, Any]) -> int:
        """Write the index, move the file to its place and return its size in bytes.

        The manifest is what JSON can hold: keys are strings, tuples come back as lists. Raises BadInput for names or
        a manifest beyond what a reader accepts.
        """
        index = self._index(manifest)
        self._file.write(index + tail_of(self._head, index))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        size = HEAD.size + sum(self._lengths.values()) + len(index) + TAIL.size
        self._refuse_taken()
        os.replace(self._temporary, self._path)
        _sync_folder(self._path.parent)
        return size

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # on a full disk closing fails once more; the first error is the one to show
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _index(self, manifest: dict[str, Any]) -> bytes:
        index = Index(manifest, self._lengths, tuple(self._checksums)).pack()
        try:
            Index.unpack(index)
        except CorruptFile as error:
            raise BadInput(f"these names and this manifest cannot be stored: {error}") from error
        if len(index) > MAX_BYTES:
            raise BadInput(f"the index would have {len(index)} bytes, at most {MAX_BYTES} are allowed")
        return index

    def _refuse_taken(self) -> None:
        if self._path.is_dir():
            raise OutputExists(f"{self._path} is a folder; name a file in it")
        if self._path.exists() and not self._force:
            raise OutputExists(f"{self._path} exists; choose another output or ask to overwrite it (force)")


def _sync_folder(folder: Path) -> None:
    """Make the rename survive a power cut where the system can; the file is whole and in its place either way."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
