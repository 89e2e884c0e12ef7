"""What a file says about its tensors: shapes, dtypes and roles in a few short strings, and what was done to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from waterfill.dtypes import dtype_name, dtype_of
from waterfill.errors import CorruptFile, NewerFormat
from waterfill.network.layout import KERNEL, RAW, ROLES, STACK, VECTOR, Layout

_MOST_DIMENSIONS = 16
_LONGEST = 1 << 40


@dataclass(frozen=True)
class Row:
    """One tensor: how it is laid out, what it became (a few words), and why it was not compressed (or nothing)."""

    layout: Layout
    words: str
    reason: str


def shape_problem(shape: tuple[int, ...]) -> str | None:
    """Why a file cannot hold a tensor of this shape, or None; for a message that names it."""
    if len(shape) > _MOST_DIMENSIONS:
        return f"has {len(shape)} dimensions, a file holds at most {_MOST_DIMENSIONS}; reshape it"
    if _spanned(shape) > _LONGEST:
        return f"has the shape {list(shape)}, and sizes of a file multiply to at most 2^40; reshape it"
    return None


def _spanned(sizes: Sequence[int]) -> int:
    """Entries; even an empty tensor's other sizes must multiply to a number that PyTorch can hold."""
    entries = 1
    for size in sizes:
        entries *= max(size, 1)
    return entries


def pack(rows: Sequence[Row]) -> dict[str, Any]:
    """Columns as compact strings: a table of values, and one index for each tensor."""
    columns: dict[str, list[str]] = {
        "dtypes": [dtype_name(row.layout.dtype) for row in rows],
        "words": [row.words for row in rows],
        "reasons": [row.reason for row in rows],
        "shapes": [",".join(map(str, row.layout.shape)) for row in rows],
    }
    packed: dict[str, Any] = {"roles": "".join(row.layout.role for row in rows)}
    for name, column in columns.items():
        values = list(dict.fromkeys(column))
        place = {value: i for i, value in enumerate(values)}
        packed[name] = [values, [place[v] for v in column] if len(values) > 1 else []]
    return packed


def unpack(packed: Any, count: int) -> list[Row]:
    """The rows of `pack`. Raises CorruptFile where it is anything else, NewerFormat for an unknown role or dtype."""
    if not isinstance(packed, Mapping) or not isinstance(packed.get("roles"), str) or len(packed["roles"]) != count:
        raise CorruptFile("the manifest does not describe the tensors of this file; it is damaged")
    columns = {name: _column(packed.get(name), count) for name in ("dtypes", "words", "reasons", "shapes")}
    rows = []
    for i, role in enumerate(packed["roles"]):
        layout = _layout(columns["shapes"][i], columns["dtypes"][i], role)
        rows.append(Row(layout, columns["words"][i], columns["reasons"][i]))
    return rows


def _column(stored: Any, count: int) -> list[str]:
    if isinstance(stored, list) and len(stored) == 2 and all(isinstance(s, list) for s in stored):
        values, index = stored
        index = index or [0] * count
        strings = all(isinstance(v, str) for v in values)
        if strings and len(index) == count and all(isinstance(i, int) and 0 <= i < len(values) for i in index):
            return [values[i] for i in index]
    raise CorruptFile("a column of the manifest is not what a writer would have written; the file is damaged")


def _layout(shape: str, dtype: str, role: str) -> Layout:
    try:
        sizes = tuple(int(s) for s in shape.split(",")) if shape else ()
    except ValueError:
        raise CorruptFile(f"the manifest gives the shape {shape[:80]!r}; the file is damaged") from None
    if role not in ROLES:
        raise NewerFormat(f"tensor role {role!r} is not known to this release; a newer waterfill wrote this file")
    layout_dims = {KERNEL: 3, STACK: 3}.get(role, 0)
    bad = len(sizes) > _MOST_DIMENSIONS or any(s < 0 for s in sizes) or _spanned(sizes) > _LONGEST
    bad = bad or len(sizes) < layout_dims
    if bad or (role not in (RAW, VECTOR) and len(sizes) < 2):
        raise CorruptFile(f"the manifest gives the shape [{shape[:80]}] to a tensor of role {role!r}; it is damaged")
    try:
        return Layout(sizes, dtype_of(dtype), role)
    except KeyError:
        raise NewerFormat(f"dtype {dtype[:40]!r} is not known to this release of PyTorch and waterfill") from None
