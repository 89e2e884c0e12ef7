"""The kinds of parts by their numbers in files, and how parts become bytes and come back, many of them at once."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from waterfill.coding.stream import Reader, Sink, Writer
from waterfill.errors import NewerFormat

MOST_NESTED = 8


class Kind(Protocol):
    """What the class of a part gives: its number, and how many of its parts are written and read."""

    kind: ClassVar[int]

    @classmethod
    def write_all(cls, parts: Sequence[Any], outs: Sequence[Sink]) -> None: ...

    @classmethod
    def read_all(cls, sources: Sequence[Reader], shapes: Sequence[tuple[int, int]]) -> list[Any]: ...


_KINDS: dict[int, type[Kind]] = {}


def register(number: int, kind: type[Kind]) -> None:
    """Give a class its number. Raises TypeError for a number that another class has."""
    if _KINDS.setdefault(number, kind).__qualname__ != kind.__qualname__:
        raise TypeError(f"part kind {number} of {kind.__name__} is taken by {_KINDS[number].__name__}")


def write_parts(parts: Sequence[Any], outs: Sequence[Sink]) -> None:
    """Write each part to its own `out`: kind, then content; the reader knows the shape from the place of the part."""
    for part, out in zip(parts, outs, strict=True):
        out.uint(part.kind)
    for kind, places in _by_kind([type(part) for part in parts]):
        kind.write_all([parts[i] for i in places], [outs[i] for i in places])


def read_parts(sources: Sequence[Reader], shapes: Sequence[tuple[int, int]]) -> list[Any]:
    """The parts that `write_parts` wrote, each from its own source.

    Raises CorruptFile, and NewerFormat for a kind that is not known here.
    """
    found: dict[int, Any] = {}
    for kind, places in _by_kind([_next_kind(src) for src in sources]):
        parts = kind.read_all([sources[i] for i in places], [shapes[i] for i in places])
        found.update(zip(places, parts, strict=True))
    for src in sources:
        src.depth -= 1
    return [found[i] for i in range(len(sources))]


def encode_all(parts: Sequence[Any]) -> list[bytes]:
    """`Part.encode` of many parts; together it is faster."""
    outs = [Writer() for _ in parts]
    write_parts(parts, outs)
    return [out.finish() for out in outs]


def decode(data: bytes, shape: tuple[int, int], what: str = "blob") -> Any:
    """The part of `Part.encode`, which must fill `data` exactly. Raises CorruptFile, NewerFormat."""
    src = Reader(data, what)
    (part,) = read_parts([src], [shape])
    src.end()
    return part


def decode_all(blobs: Sequence[bytes], shapes: Sequence[tuple[int, int]]) -> list[Any]:
    """`part.decode` of many blobs; together it is faster. Raises CorruptFile, NewerFormat."""
    sources = [Reader(data, f"blob {i}") for i, data in enumerate(blobs)]
    parts = read_parts(sources, shapes)
    for src in sources:
        src.end()
    return parts


def _next_kind(src: Reader) -> type[Kind]:
    if (number := src.uint(1 << 30)) not in _KINDS:
        raise NewerFormat(f"part kind {number} is not known to this release; a newer waterfill wrote this file")
    src.depth += 1
    if src.depth > MOST_NESTED:
        raise src.fail(f"parts inside parts, more than {MOST_NESTED} deep")
    return _KINDS[number]


def _by_kind(kinds: Sequence[type[Kind]]) -> list[tuple[type[Kind], list[int]]]:
    """Each kind once, with the places where it stands."""
    places: dict[type[Kind], list[int]] = {}
    for i, kind in enumerate(kinds):
        places.setdefault(kind, []).append(i)
    return list(places.items())
