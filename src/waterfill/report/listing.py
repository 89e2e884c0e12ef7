"""The content of a file, tensor by tensor, from its manifest: read and shown without torch."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from waterfill.report.text import Column, bytes_text, count_text, screen, table
from waterfill.storage import FileReader
from waterfill.storage.folds import Fold, unpack
from waterfill.storage.manifest import Manifest
from waterfill.storage.remarks import warning_in

SHORT = 40
"""Rows of a table up to which every tensor has its own."""
RUNNING = ("running_mean", "running_var", "num_batches_tracked")  # a norm's statistics count as no weights
_MOST_BYTES = 1 << 60
_NOTHING = 1e-30  # nats
_NUMBER = re.compile(r"\d+")
_COLUMNS = (
    Column("tensor", text=True, least=32),
    Column("times"),
    Column("shape"),
    Column("dtype", text=True),
    Column("part", text=True),
    Column("bits/entry"),
    Column("bytes"),
    Column("error"),
    Column("nats"),
)


@dataclass(frozen=True)
class Item:
    """One tensor: its name, shape and dtype, the part it became, its bytes, and why it was not compressed (or nothing).

    warning: what a user should know of how it was compressed, or nothing. error: relative to the norm of the original,
    if known. nats: the predicted cost of its error, if known. count: how many tensors of one pattern the row stands
    for; bytes and nats are those of all of them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    part: str
    bytes: float
    error: float | None = None
    reason: str = ""
    nats: float | None = None
    count: int = 1
    warning: str = ""

    @property
    def entries(self) -> int:
        """Entries of the tensor."""
        return math.prod(self.shape)

    @property
    def weights(self) -> int:
        """Numbers that count as weights: reals, two for a complex one, but a norm's running statistics."""
        if self.name.endswith(RUNNING) or not self.dtype.startswith(("float", "bfloat", "complex")):
            return 0
        return self.entries * (2 if self.dtype.startswith("complex") else 1)

    def as_json(self) -> dict[str, Any]:
        """The row for `--json`."""
        unknown = {name for name in ("error", "nats") if getattr(self, name) is None}
        row = {name: value for name, value in asdict(self).items() if name not in unknown | {"count"}}
        return row | {"bits": 8 * self.bytes / max(1, self.entries)}


@dataclass(frozen=True)
class Listing:
    """items: the tensors of a file. aliases: tied names and the one that holds the data. notes: how it was made.
    size: bytes of the whole file."""

    items: tuple[Item, ...]
    aliases: Mapping[str, str]
    notes: Mapping[str, Any]
    size: int

    @property
    def weights(self) -> int:
        """Entries that count as weights, tied ones once."""
        return sum(item.weights for item in self.items)

    @property
    def bits(self) -> float:
        """Bits of the whole file per weight."""
        return 8 * self.size / max(1, self.weights)

    @property
    def original(self) -> int | None:
        """Bytes of the original tensors; None where the file does not hold them."""
        original = self.notes.get("original")
        return original if type(original) is int and 0 < original <= _MOST_BYTES else None

    def totals(self) -> str:
        """Size, ratio and bits per weight of the whole file, in a line."""
        phrases = [f"{self.size} bytes"]
        if self.original:
            phrases.append(f"{self.original / self.size:.2f} times smaller than {bytes_text(self.original)}")
        count = f"{count_text(self.weights)} weights in {len(self.items)} tensors"
        return ", ".join([*phrases, f"{self.bits:.3f} bits per weight", count])

    def text(self, everything: bool) -> str:
        """The table of the tensors (see `overview`), under it what concerns all of them, and that of the tied ones."""
        shown = overview(self.items, everything)
        shown += f"\n\nwarning: {self.warning}" if self.warning else ""
        if not self.aliases:
            return shown
        columns = Column("tied tensor", text=True), Column("is the same as", text=True)
        return f"{shown}\n\n{table(columns, self.aliases.items(), screen())}"

    def as_json(self) -> dict[str, Any]:
        """Totals and rows for `--json`."""
        return {
            "bytes": self.size,
            "original_bytes": self.original,
            "ratio": self.original / self.size if self.original else None,
            "weights": self.weights,
            "bits_per_weight": self.bits,
            "recipe": self.recipe,
            "folded": None if self.folds is None else {fold.norm: fold.layer for fold in self.folds},
            "warning": self.warning,
            "aliases": dict(self.aliases),
            "tensors": [item.as_json() for item in self.items],
        }

    @property
    def warning(self) -> str:
        """The warning of the network as a whole, or empty."""
        return warning_in(self.notes)

    @property
    def folds(self) -> list[Fold] | None:
        """Norms that were folded into layers before they were compressed; None if it is not said which. Raises
        CorruptFile."""
        return unpack(self.notes.get("folded"), [*(item.name for item in self.items), *self.aliases])

    @property
    def folded(self) -> str:
        """The folded norms in words, or empty. Raises CorruptFile."""
        folds = self.folds
        if folds is None:
            return "norms are folded into the layers before them; it is not said which"
        return f"{len(folds)} norms are folded into the layers before them, and hold constants" if folds else ""

    @property
    def recipe(self) -> str:
        """The recipe that the file was made by, or nothing."""
        return str(self.notes.get("recipe", ""))


def items_of(rows: Iterable[Mapping[str, Any]]) -> tuple[Item, ...]:
    """The items of the rows that `CompressedModel.table` and the summary of a job give."""
    names = ("name", "dtype", "part", "bytes", "error", "reason", "warning")
    return tuple(Item(shape=tuple(row["shape"]), **{name: row[name] for name in names}) for row in rows)


def read_listing(src: FileReader) -> Listing:
    """The listing of an open file. Raises CorruptFile, NewerFormat."""
    manifest = Manifest.unpack(src.manifest, src.names)
    warned = manifest.notes.get("warnings")
    warnings = warned if isinstance(warned, dict) else {}
    items = [
        Item(name, row.shape, row.dtype, row.words, size, reason=row.reason, warning=str(warnings.get(name, "")))
        for (name, size), row in zip(src.lengths.items(), manifest.rows, strict=True)
    ]
    return Listing(tuple(items), manifest.aliases, manifest.notes, src.size)


def overview(items: Sequence[Item], everything: bool = False) -> str:
    """The table of these tensors; a long one shows a row for each pattern of names, and of those the largest."""
    if everything or len(items) <= SHORT:
        return _table(items)
    groups = grouped(items)
    least = sorted((item.bytes for item in groups), reverse=True)[:SHORT][-1]
    shown = [item for item in groups if item.bytes >= least][:SHORT]
    rest = [item for item in groups if item not in shown]
    lines = [_table(shown)]
    if rest:
        size = bytes_text(sum(item.bytes for item in rest))
        lines.append(f"... and {sum(item.count for item in rest)} tensors more, {size}")
    lines.append("tensors whose names differ in numbers only share a row (error: the largest); --all shows each")
    return "\n".join(lines)


def grouped(items: Iterable[Item]) -> list[Item]:
    """One row for all tensors whose names differ in numbers only and that have the same shape and dtype.

    Its name has a star for each number that differs.
    """
    groups: dict[tuple[Any, ...], list[Item]] = {}
    for item in items:
        groups.setdefault(likeness(item), []).append(item)
    return [_merged(group) for group in groups.values()]


def any_numbers(name: str) -> str:
    """The name with a star for each number."""
    return _NUMBER.sub("*", name)


def common_name(names: Sequence[str]) -> str:
    """The name of all of these, which differ in numbers only: a star for each number that differs."""
    numbers = zip(*map(_NUMBER.findall, names), strict=True)
    shown = iter([same[0] if len(set(same)) == 1 else "*" for same in numbers])
    return _NUMBER.sub(lambda _: next(shown), names[0])


def likeness(item: Item) -> tuple[Any, ...]:
    """Equal for tensors that share a row."""
    return any_numbers(item.name), item.shape, item.dtype, item.reason, item.warning


def _merged(group: list[Item]) -> Item:
    if len(group) == 1:
        return group[0]
    pattern = common_name([item.name for item in group])
    errors = [item.error for item in group if item.error is not None]
    nats = [item.nats for item in group if item.nats is not None]
    parts = " / ".join(dict.fromkeys(item.part for item in group))
    first = replace(group[0], name=pattern, part=parts, bytes=sum(item.bytes for item in group), count=len(group))
    return replace(first, error=max(errors, default=None), nats=sum(nats) if nats else None)


def _table(items: Sequence[Item]) -> str:
    """The table, and under it why some tensors were not compressed by the recipe, and warnings."""
    notes = [("not by the recipe", item.reason) for item in items if item.reason]
    notes += [("warning", item.warning) for item in items if item.warning]
    marks = {pair: f"[{number}]" for number, pair in enumerate(dict.fromkeys(notes), 1)}
    pairs = [(("not by the recipe", item.reason), ("warning", item.warning)) for item in items]
    rows = [
        _cells(item, " ".join(marks[pair] for pair in own if pair in marks))
        for item, own in zip(items, pairs, strict=True)
    ]
    return "\n".join(
        [table(_COLUMNS, rows, screen()), *(f"{mark} {what}: {why}" for (what, why), mark in marks.items())]
    )


def _cells(item: Item, mark: str) -> list[str]:
    times = f"{item.count}" if item.count > 1 else ""
    shape = "x".join(map(str, item.shape)) or "scalar"
    bits = f"{8 * item.bytes / (item.entries * item.count):.2f}" if item.entries else ""
    error = "" if item.error is None else f"{100 * item.error:.2f} %" if item.error else "0"
    nats = "" if item.nats is None else f"{item.nats:.2g}" if item.nats > _NOTHING else "0"
    return [item.name, times, shape, item.dtype, f"{item.part} {mark}".strip(), bits, f"{item.bytes:.0f}", error, nats]
