"""The description of a file's tensors: shapes, dtypes and roles in a few short strings, and how they were made.

Text and numbers only, no tensors, so that a file is listed without torch. All checks of a manifest that was read are
here.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from waterfill.errors import CorruptFile, NewerFormat

VECTOR, MATRIX, KERNEL, STACK, RAW = "v", "m", "k", "s", "r"
ROLES = (VECTOR, MATRIX, KERNEL, STACK, RAW)
"""How a tensor is laid out as matrices: see `waterfill.network.layout`."""
MOST_DIMENSIONS = 16
MOST_ENTRIES = 1 << 40
_LEAST_DIMENSIONS = {MATRIX: 2, KERNEL: 3, STACK: 3}
_SHAPE = re.compile(r"([0-9]{1,13}(,[0-9]{1,13})*)?")


@dataclass(frozen=True)
class Row:
    """One tensor: its shape, dtype and role, words for its parts, and why the recipe was not applied (or "")."""

    shape: tuple[int, ...]
    dtype: str
    role: str
    words: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest.

    rows: a tensor each, in file order. aliases: by tied name, the one that holds the data. notes: how they were made.
    """

    rows: Sequence[Row]
    aliases: Mapping[str, str]
    notes: Mapping[str, Any]

    def pack(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"tensors": pack(self.rows), "aliases": dict(self.aliases), "notes": dict(self.notes)}

    @classmethod
    def unpack(cls, packed: Mapping[str, Any], names: Iterable[str]) -> "Manifest":
        """The inverse of `pack`, for the tensors of these names.

        Raises:
            CorruptFile: for what no writer would have written.
            NewerFormat: for a role that is not known here.
        """
        known = dict.fromkeys(names)
        aliases, notes = packed.get("aliases", {}), packed.get("notes", {})
        if not isinstance(aliases, dict) or not isinstance(notes, dict):
            raise CorruptFile(
                "the manifest's aliases and notes are not what a writer would have written; the file is damaged"
            )
        if not all(isinstance(own, str) and own in known and alias not in known for alias, own in aliases.items()):
            raise CorruptFile("an alias names a tensor that the file does not hold; it is damaged")
        return cls(unpack(packed.get("tensors"), len(known)), aliases, notes)


def shape_problem(shape: tuple[int, ...]) -> str | None:
    """Why a file cannot hold a tensor of this shape, or None; for a message that names it."""
    if len(shape) > MOST_DIMENSIONS:
        return f"has {len(shape)} dimensions, a file holds at most {MOST_DIMENSIONS}; reshape it"
    entries = 1
    for size in shape:
        entries *= max(size, 1)  # even an empty tensor's other sizes multiply to a number that PyTorch can hold
    return (
        None if entries <= MOST_ENTRIES else f"has the shape {list(shape)}, and sizes may multiply to 2^40; reshape it"
    )


def pack(rows: Sequence[Row]) -> dict[str, Any]:
    """Columns as compact strings: a table of values, and one index for each tensor."""
    columns: dict[str, list[str]] = {
        "dtypes": [row.dtype for row in rows],
        "words": [row.words for row in rows],
        "reasons": [row.reason for row in rows],
        "shapes": [",".join(map(str, row.shape)) for row in rows],
    }
    packed: dict[str, Any] = {"roles": "".join(row.role for row in rows)}
    for name, column in columns.items():
        places = {value: i for i, value in enumerate(dict.fromkeys(column))}
        packed[name] = [list(places), [places[value] for value in column] if len(places) > 1 else []]
    return packed


def unpack(packed: Any, count: int) -> list[Row]:
    """The rows of `pack`. Raises CorruptFile where it is anything else, NewerFormat for an unknown role."""
    if not isinstance(packed, Mapping) or not isinstance(packed.get("roles"), str) or len(packed["roles"]) != count:
        raise CorruptFile("the manifest does not describe the tensors of this file; it is damaged")
    shapes, dtypes, words, reasons = (
        _column(packed.get(key), count) for key in ("shapes", "dtypes", "words", "reasons")
    )
    sizes = {shape: _sizes(shape) for shape in dict.fromkeys(shapes)}
    for shape, role in dict.fromkeys(zip(shapes, packed["roles"], strict=True)):
        _check_role(role, sizes[shape])
    shaped = [sizes[shape] for shape in shapes]
    return [Row(*row) for row in zip(shaped, dtypes, packed["roles"], words, reasons, strict=True)]


def _column(stored: Any, count: int) -> list[str]:
    """A column: its distinct texts, and which of them each tensor has (none: all have the only one)."""
    match stored:
        case [list(values), list(places)] if all(isinstance(value, str) for value in values):
            places = places or [0] * count
            if len(places) == count and all(type(i) is int and 0 <= i < len(values) for i in places):
                return [values[i] for i in places]
    raise CorruptFile("a column of the manifest is not what a writer would have written; the file is damaged")


def _sizes(shape: str) -> tuple[int, ...]:
    sizes = tuple(map(int, filter(None, shape.split(",")))) if _SHAPE.fullmatch(shape) else None
    if sizes is not None and shape_problem(sizes) is None:
        return sizes
    raise CorruptFile(f"the manifest gives the shape [{shape[:80]}]; the file is damaged")


def _check_role(role: str, sizes: tuple[int, ...]) -> None:
    if role not in ROLES:
        raise NewerFormat(f"tensor role {role!r} is not known to this release; a newer waterfill wrote this file")
    if len(sizes) < _LEAST_DIMENSIONS.get(role, 0):
        raise CorruptFile(f"the manifest gives the shape {list(sizes)} to a tensor of role {role!r}; it is damaged")
