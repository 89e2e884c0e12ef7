"""One tensor of a compressed model: its parts and their bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

import waterfill.parts  # noqa: F401 - registers the kinds that a file may hold
from waterfill.arithmetic import own_arithmetic
from waterfill.coding.stream import Reader, Writer
from waterfill.dtypes import dtype_name, dtype_of
from waterfill.errors import NewerFormat
from waterfill.network.layout import Layout
from waterfill.part import Part, read_parts, write_part
from waterfill.storage.manifest import Row


@dataclass(frozen=True, eq=False)
class Entry:
    """A tensor as parts, one for each of its matrices, and as `blob`, the bytes of these parts in a file.

    reason: why the recipe was not applied, or empty. error: norm of the error relative to that of the tensor; None for
    one that was read from a file.
    """

    name: str
    layout: Layout
    parts: tuple[Part, ...]
    blob: bytes
    reason: str = ""
    error: float | None = None

    @property
    def words(self) -> str:
        """The descriptions of its parts, each different one once."""
        return " / ".join(dict.fromkeys(part.describe() for part in self.parts)) or "empty"

    def tensor(self) -> Tensor:
        """The tensor, in its own shape and dtype."""
        return restored(self.parts, self.layout)


def restored(parts: tuple[Part, ...], layout: Layout) -> Tensor:
    """The tensor of these parts, independent of PyTorch's settings. Raises CorruptFile if a part has another type."""
    with own_arithmetic():
        return layout.join([part.dense() for part in parts])


def encode(parts: tuple[Part, ...]) -> bytes:
    """The blob of a tensor: its parts one after the other."""
    out = Writer()
    for part in parts:
        write_part(part, out)
    return out.finish()


def decode(blob: bytes, layout: Layout, name: str) -> tuple[Part, ...]:
    """The parts of a blob, every count and checksum verified. Raises CorruptFile, NewerFormat."""
    return decode_all([blob], [layout], [name])[0]


def decode_all(blobs: Sequence[bytes], layouts: Sequence[Layout], names: Sequence[str]) -> list[tuple[Part, ...]]:
    """The parts of each of many blobs, the first ones of all together, then the second ones, and so on: that is faster.

    Raises CorruptFile, NewerFormat.
    """
    sources = [Reader(blob, f"tensor {name!r}") for blob, name in zip(blobs, names, strict=True)]
    parts: list[list[Part]] = [[] for _ in sources]
    left = [i for i, layout in enumerate(layouts) if layout.count]
    while left:
        found = read_parts([sources[i] for i in left], [layouts[i].matrix for i in left])
        for i, part in zip(left, found, strict=True):
            parts[i].append(part)
        left = [i for i in left if len(parts[i]) < layouts[i].count]
    for src in sources:
        src.end()
    return [tuple(some) for some in parts]


def row_of(layout: Layout, words: str, reason: str) -> Row:
    """The manifest's row of a tensor."""
    return Row(layout.shape, dtype_name(layout.dtype), layout.role, words, reason)


def layout_in(row: Row) -> Layout:
    """The layout that a manifest gives to a tensor. Raises NewerFormat for a dtype that PyTorch does not know here."""
    try:
        return Layout(row.shape, dtype_of(row.dtype), row.role)
    except KeyError:
        raise NewerFormat(f"dtype {row.dtype[:40]!r} is not known to this release of PyTorch and waterfill") from None
