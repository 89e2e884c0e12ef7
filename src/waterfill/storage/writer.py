"""Writing a file: blob by blob into a temporary file beside the target, which it replaces only when it is whole."""

import os
from typing import Any, Self
from zlib import crc32

from waterfill.errors import BadInput, CorruptFile
from waterfill.storage.atomic import AtomicFile
from waterfill.storage.index import (
    FEATURES,
    HEAD,
    MAGIC,
    MAX_BYTES,
    NO_CHUNK,
    VERSION,
    Index,
    name_problem,
    starts_chunk,
    tail_of,
)


class FileWriter:
    """Writes one file; memory holds names, lengths and checksums, never the blobs.

    Use it in a `with` block: leaving the block before `finish` has returned removes the temporary file and leaves
    `path` as it was. Raises OutputExists if `path` is taken (without `force`), no regular file or being written by
    another process, BadInput if its folder is missing; errors of the system (a full disk) pass through as OSError.
    """

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        self._out = AtomicFile(path, force=force)
        self._head = HEAD.pack(MAGIC, VERSION, FEATURES)
        self._lengths: dict[str, int] = {}
        self._checksums: list[int] = []
        self._filled = NO_CHUNK

    def __enter__(self) -> Self:
        self._out.__enter__()
        self._out.file.write(self._head)
        return self

    def add(self, name: str, data: bytes) -> None:
        """Append one blob. Raises BadInput for a name that is taken or cannot be stored."""
        problem = "is taken" if name in self._lengths else name_problem(name)
        if problem:
            raise BadInput(f"the name {name[:80]!r} {problem}; rename the weight")
        self._out.file.write(data)
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
        self._out.file.write(index + tail_of(self._head, index))
        return self._out.finish()

    def __exit__(self, *_: object) -> None:
        self._out.__exit__()

    def _index(self, manifest: dict[str, Any]) -> bytes:
        index = Index(manifest, self._lengths, tuple(self._checksums)).pack()
        try:
            Index.unpack(index)
        except CorruptFile as error:
            raise BadInput(f"these names and this manifest cannot be stored: {error}") from error
        if len(index) > MAX_BYTES:
            raise BadInput(f"the index would have {len(index)} bytes, at most {MAX_BYTES} are allowed")
        return index
