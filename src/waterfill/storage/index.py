"""The index of a file: names, lengths, checksums and the caller's manifest, and how they become bytes and come back."""

import itertools
import json
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from waterfill.errors import BadInput, CorruptFile

MAGIC = b"\x89WF\n"  # a byte above 127 and a line end: a transfer in text mode breaks it at once
VERSION = 1
FEATURES = 0  # the required features known here, one bit each
HEAD = struct.Struct("<4sBB")  # magic, version, required features
TAIL = struct.Struct("<II")  # bytes of the index; crc32 of head, index and that number

CHUNK = 4096  # bytes: blobs share a checksum up to one page of disk, so reading one of them costs no more reads
NO_CHUNK = CHUNK + 1  # "bytes in the chunk so far" while there is none: no blob joins it
MAX_NAME = 1024  # bytes of UTF-8
MAX_NAMES = 1 << 18
MAX_BYTES = 64 << 20  # of the index, of its inflated body, and of all names together
FREE_VALUES, VALUES_PER_NAME = 1 << 16, 16  # separators in the manifest's JSON: bound the memory of the parsed values
MAX_DEPTH = 64  # levels from the manifest down to its deepest value
MARK = re.compile(rb'[,\[{]|"(?:[^"\\]++|\\.)*+"')  # what stands before a value of JSON, and strings to be passed over
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Index:
    """The index of a file: the caller's manifest, bytes of each blob by name in file order, a CRC-32 per chunk."""

    manifest: dict[str, Any]
    lengths: Mapping[str, int]
    checksums: tuple[int, ...]

    def pack(self) -> bytes:
        """The bytes of the index. Names are front-coded: how much each shares with the one before, then its ending.

        Raises BadInput for a manifest that JSON cannot hold.
        """
        names = [name.encode() for name in self.lengths]
        shared = [_shared(before, name) for before, name in zip([b"", *names], names, strict=False)]
        numbers = b"".join(map(_varint, [len(names), *shared, *self.lengths.values()]))
        endings = b"".join(name[skip:] + b"\n" for name, skip in zip(names, shared, strict=True))
        body = numbers + endings + _json(self.manifest)
        return _deflate(body) + struct.pack(f"<{len(self.checksums)}I", *self.checksums)

    @classmethod
    def unpack(cls, raw: bytes) -> "Index":
        """The inverse of `pack`. Raises CorruptFile for bytes that `pack` would not write within the limits above."""
        body, checksums = _inflate(raw)
        (count,), at = _varints(body, 0, 1)
        _require(count <= MAX_NAMES, f"{count} blobs are declared, more than {MAX_NAMES}")
        shared, at = _varints(body, at, count)
        sizes, at = _varints(body, at, count)
        *endings, manifest = body[at:].split(b"\n", count)
        _require(len(endings) == count, f"{count} blobs are declared, {len(endings)} are named")
        lengths = dict(zip(_names(shared, endings), sizes, strict=True))
        _require(len(lengths) == count, "a name stands there twice")
        chunks = chunk_count(sizes)
        _require(len(checksums) == 4 * chunks, f"{chunks} checksums are due, {len(checksums)} bytes are there")
        return cls(
            _parse(manifest, FREE_VALUES + VALUES_PER_NAME * count), lengths, struct.unpack(f"<{chunks}I", checksums)
        )


def size_of(manifest: dict[str, Any], lengths: Mapping[str, int]) -> int:
    """Exact bytes of the file that would hold this manifest and blobs of these lengths (bytes, by name, in order)."""
    index = Index(manifest, lengths, (0,) * chunk_count(lengths.values())).pack()
    return HEAD.size + sum(lengths.values()) + len(index) + TAIL.size


def tail_of(head: bytes, index: bytes) -> bytes:
    """The last bytes of the file: the index's length, and the checksum that covers all but the blobs."""
    length = struct.pack("<I", len(index))
    return length + struct.pack("<I", zlib.crc32(length, zlib.crc32(index, zlib.crc32(head))))


def starts_chunk(filled: int, length: int) -> bool:
    """Whether a blob of `length` bytes opens a new chunk, `filled` bytes being in the last one (NO_CHUNK: none is)."""
    return filled + length > CHUNK


def chunk_numbers(lengths: Iterable[int]) -> list[int]:
    """For each blob, in file order, the number of the chunk it is checked with."""
    numbers, number, filled = [], -1, NO_CHUNK
    for length in lengths:
        if starts_chunk(filled, length):
            number, filled = number + 1, 0
        filled += length
        numbers.append(number)
    return numbers


def chunk_count(lengths: Iterable[int]) -> int:
    """How many chunks, and so checksums, blobs of these lengths make."""
    return max(chunk_numbers(lengths), default=-1) + 1


def name_problem(name: str) -> str | None:
    """Why a blob cannot have this name, or None."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if not 0 < size <= MAX_NAME:
        return f"has {size} bytes, not 1 to {MAX_NAME}"
    return "holds a control character" if CONTROL.search(name) else None


def _shared(before: bytes, name: bytes) -> int:
    """Bytes that two names have in common at their beginnings."""
    unlike = (at for at, (a, b) in enumerate(zip(before, name, strict=False)) if a != b)
    return next(unlike, min(len(before), len(name)))


def _names(shared: list[int], endings: list[bytes]) -> list[str]:
    names, previous, total = [], b"", 0
    for skip, ending in zip(shared, endings, strict=True):
        _require(skip <= len(previous), "a name shares more than there is of the one before it")
        previous = previous[:skip] + ending
        total += len(previous)
        _require(total <= MAX_BYTES, f"the names have more than {MAX_BYTES} bytes")
        try:
            name = previous.decode()
        except UnicodeDecodeError as error:
            raise CorruptFile(f"a name is not UTF-8: {error}") from error
        problem = name_problem(name)
        _require(not problem, f"the name {name[:80]!r} {problem}")
        names.append(name)
    return names


def _json(manifest: dict[str, Any]) -> bytes:
    try:
        return json.dumps(manifest, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"the manifest must be a dict that JSON can hold: {error}") from error


def _parse(text: bytes, most: int) -> dict[str, Any]:
    """The manifest, of at most so many values."""
    marks = sum(text.count(mark) for mark in b",[{")
    if marks > most:  # perhaps in strings
        met = (1 for mark in MARK.finditer(text) if text[mark.start()] != ord('"'))
        _require(sum(itertools.islice(met, most + 1)) <= most, f"the manifest has more than {most} values")
    try:
        manifest = json.loads(text.decode("ascii"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"the manifest is not JSON: {error}") from error
    _require(isinstance(manifest, dict), "the manifest is not a JSON object")
    _require(_depth(manifest) <= MAX_DEPTH, f"the manifest is nested deeper than {MAX_DEPTH} levels")
    return manifest


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _depth(value: Any) -> int:
    """Levels from a value down to the deepest one in it; without recursion, as the nesting is not ours to choose."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [child for parent in level for child in _children(parent)]
    return depth - 1


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _deflate(body: bytes) -> bytes:
    """The shorter of two ways, if a reader will inflate it; without matches deflate never gains more than 8 times."""
    ways = []
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY):
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, strategy=strategy)
        ways.append(packer.compress(body) + packer.flush())
    return min((way for way in ways if len(body) <= _expansion(len(way))), key=len)


def _expansion(size: int) -> int:
    """The most bytes that `size` bytes may inflate to: memory is earned by bytes that are there."""
    return 64 * size + 65536


def _inflate(raw: bytes) -> tuple[bytes, bytes]:
    """The deflated stream at the start of `raw`, inflated, and what follows it."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    limit = min(_expansion(len(raw)), MAX_BYTES)
    try:
        body = inflater.decompress(raw, limit + 1)
    except zlib.error as error:
        raise CorruptFile(f"the deflated stream is damaged: {error}") from error
    _require(len(body) <= limit, f"the deflated stream expands to more than {limit} bytes")
    _require(inflater.eof, "the deflated stream does not end")
    return body, inflater.unused_data


def _varint(value: int) -> bytes:
    """Seven bits to a byte, the lowest first; the top bit says that more follow (LEB128)."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varints(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    """`count` numbers below 2^63 from `data[at:]`, and the position after them."""
    values = []
    for _ in range(count):
        value, shift = 0, 0
        more = True
        while more:
            _require(at < len(data) and shift < 63, f"byte {at} of the inflated index: no number ends there")
            value |= (data[at] & 127) << shift
            more = data[at] > 127
            at, shift = at + 1, shift + 7
        values.append(value)
    return values, at


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise CorruptFile(otherwise)
