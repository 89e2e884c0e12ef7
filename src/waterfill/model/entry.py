"""One tensor of a compressed model: its parts and their bytes."""

from dataclasses import dataclass

from torch import Tensor

import waterfill.parts  # noqa: F401 - registers the kinds that a file may hold
from waterfill.coding.stream import Reader, Writer
from waterfill.network.layout import Layout
from waterfill.part import Part, read_part, write_part


@dataclass(frozen=True, eq=False)
class Entry:
    """A tensor as parts, one for each of its matrices, and as `blob`, the bytes of these parts in a file.

    reason: why it was not compressed by the recipe, if it was not. error: norm of the error relative to that of the
    tensor, where it was just compressed.
    """

    name: str
    layout: Layout
    parts: tuple[Part, ...]
    blob: bytes
    reason: str = ""
    error: float | None = None

    @property
    def words(self) -> str:
        """What the tensor became, in a few words: the different ones of its parts."""
        return " / ".join(dict.fromkeys(part.describe() for part in self.parts)) or "empty"

    def tensor(self) -> Tensor:
        """The tensor, in its own shape and dtype."""
        return self.layout.join([part.dense() for part in self.parts])


def encode(parts: tuple[Part, ...]) -> bytes:
    """The blob of a tensor: its parts one after the other."""
    out = Writer()
    for part in parts:
        write_part(part, out)
    return out.finish()


def decode(blob: bytes, layout: Layout, name: str) -> tuple[Part, ...]:
    """The parts of a blob, every count and checksum proved. Raises CorruptFile, NewerFormat."""
    src = Reader(blob, f"tensor {name!r}")
    parts = tuple(read_part(src, layout.matrix) for _ in range(layout.count))
    src.end()
    return parts
