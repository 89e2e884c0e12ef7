"""Reading a file: the index when it is opened, each blob on access, every byte checked before it is used."""

import difflib
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Self
from zlib import crc32

from waterfill.errors import BadInput, CorruptFile, NewerFormat
from waterfill.storage.index import FEATURES, HEAD, MAGIC, MAX_BYTES, TAIL, VERSION, Index, chunk_numbers, tail_of
from waterfill.storage.paths import check_source


class FileReader:
    """Reads one file, from any thread. Use it in a `with` block.

    Raises CorruptFile (path, place and reason) for damage, NewerFormat for a version or feature not known here.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        check_source(path)
        self._path = path
        self._lock = threading.Lock()
        self._file = open(path, "rb")  # noqa: SIM115  (`__exit__` closes it: the reader is the context manager)
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            self.version, self._index = self._open()
        except BaseException:
            self._file.close()
            raise
        self._start: dict[str, int] = {}  # offset of each blob
        self._chunk = dict(zip(self.lengths, chunk_numbers(self.lengths.values()), strict=True))
        self._first: dict[int, str] = {}  # first and last blob of each chunk
        self._last: dict[int, str] = {}
        at = HEAD.size
        for name, chunk in self._chunk.items():
            self._start[name] = at
            self._first.setdefault(chunk, name)
            self._last[chunk] = name
            at += self.lengths[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest that the writer gave to `finish`, decoded from JSON."""
        return self._index.manifest

    @property
    def lengths(self) -> Mapping[str, int]:
        """Bytes of each blob by name, in file order."""
        return self._index.lengths

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the blobs, in file order."""
        return tuple(self._index.lengths)

    def blob(self, name: str) -> bytes:
        """The bytes of one blob, checked. Raises BadInput for a name that is not there, CorruptFile for damage."""
        if name not in self._start:
            near = difflib.get_close_matches(name, self._start)
            advice = f"is it one of {', '.join(map(repr, near))}?" if near else f"there are {len(self._start)} others"
            raise BadInput(f"{self._path} has no tensor {name!r}; {advice}")
        chunk = self._chunk[name]
        skip = self._start[name] - self._start[self._first[chunk]]
        return self._checked(chunk)[skip : skip + self.lengths[name]]

    def blobs(self) -> Iterator[tuple[str, bytes]]:
        """Every blob by name, in file order, each chunk read and checked once. Raises CorruptFile."""
        last, data = -1, b""
        for name, chunk in self._chunk.items():
            if chunk != last:
                last, data = chunk, self._checked(chunk)
            skip = self._start[name] - self._start[self._first[chunk]]
            yield name, data[skip : skip + self.lengths[name]]

    def verify(self) -> None:
        """Read and check every blob; memory holds one at a time. Raises CorruptFile at the first damage."""
        for chunk in self._first:
            self._checked(chunk)

    def _checked(self, chunk: int) -> bytes:
        first, last = self._first[chunk], self._last[chunk]
        start, stop = self._start[first], self._start[last] + self.lengths[last]
        data = self._read(start, stop - start)
        if crc32(data) != self._index.checksums[chunk]:
            which = f"blob {first!r}" if first == last else f"blobs {first!r} to {last!r}"
            raise self._corrupt(f"bytes {start} to {stop}, {which}: the checksum does not match")
        return data

    def _open(self) -> tuple[int, Index]:
        """Version and index, after the head, the tail, the index's checksum and the file's size have been checked."""
        head = self._read(0, min(HEAD.size, self.size))
        if not head.startswith(MAGIC):
            raise self._corrupt("not a waterfill file: it does not begin with the magic number")
        if self.size < HEAD.size + TAIL.size:
            raise self._corrupt(f"cut short after {self.size} bytes: every waterfill file has more")
        _, version, features = HEAD.unpack(head)
        if version > VERSION or features & ~FEATURES:
            version_text = f"has format version {version}, required features {features:#04x}"
            known = f"this release reads version {VERSION}, features {FEATURES:#04x}"
            raise NewerFormat(f"{self._path} {version_text}; {known}: use a newer release of waterfill")
        if version < VERSION:
            raise self._corrupt(f"byte 4: there is no format version {version}")
        return version, self._read_index(head)

    def _read_index(self, head: bytes) -> Index:
        end = self.size - TAIL.size
        tail = self._read(end, TAIL.size)
        length, _ = TAIL.unpack(tail)
        if length > min(end - HEAD.size, MAX_BYTES):
            raise self._corrupt(f"byte {end}: no index of {length} bytes can be there; damaged or cut short")
        start = end - length
        raw = self._read(start, length)
        if tail_of(head, raw) != tail:
            raise self._corrupt(f"bytes {start} to {self.size}: the index does not match its checksum")
        try:
            index = Index.unpack(raw)
        except CorruptFile as error:
            raise self._corrupt(f"bytes {start} to {end}, the index: {error}") from error
        blobs = sum(index.lengths.values())
        if HEAD.size + blobs != start:
            raise self._corrupt(f"byte {HEAD.size}: {blobs} bytes of blobs are due, {start - HEAD.size} are there")
        return index

    def _read(self, start: int, count: int) -> bytes:
        with self._lock:
            self._file.seek(start)
            data = self._file.read(count)
        if len(data) != count:
            raise self._corrupt(f"byte {start + len(data)}: the file ended while it was being read")
        return data

    def _corrupt(self, what: str) -> CorruptFile:
        return CorruptFile(f"{self._path}: {what}")
