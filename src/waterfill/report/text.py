"""Text for people: names made safe to print, sizes in bytes, tables that fit a screen."""

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

WIDTH = 100
"""Columns that a table may take on any terminal, however narrow."""
_LONGEST = 2048  # characters of a cell, where nothing else cuts it: names are shorter
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


class ReaderGone(Exception):
    """The reader of standard output (head, less) has closed it."""


def say(text: str = "") -> None:
    """One line of data on standard output; whatever a terminal would obey or cannot show is escaped. Raises
    ReaderGone."""
    if sys.stdout is not None:  # it was closed: nobody listens
        _to_reader(lambda out: out.write(_writable(text, out.encoding) + "\n"))


def say_json(value: Any) -> None:
    """A value as JSON on standard output, plain ASCII. Raises ReaderGone."""
    if sys.stdout is not None:
        _to_reader(lambda out: out.write(json.dumps(value, indent=2, allow_nan=False) + "\n"))


def said() -> None:
    """Flush standard output. Raises ReaderGone."""
    if sys.stdout is not None:
        _to_reader(lambda out: out.flush())


def _to_reader(act: Callable[[TextIO], Any]) -> None:
    try:
        act(sys.stdout)
    except BrokenPipeError as error:
        raise ReaderGone from error


def complain(text: str) -> None:
    """One message on standard error, its control characters escaped."""
    if sys.stderr is not None:
        show(_writable(text, sys.stderr.encoding) + "\n")


def show(text: str) -> None:
    """Text on standard error as it is; if that is closed or nobody reads it, the work goes on without."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()


def printable(text: str) -> str:
    """`text` with what is not printable (controls, marks of direction) as escapes: no name can steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _writable(text: str, encoding: str | None) -> str:
    safe = "\n".join(map(printable, text.split("\n")))
    return safe.encode(encoding or "ascii", "backslashreplace").decode(encoding or "ascii")


def parse_size(text: str) -> int:
    """Bytes of a size such as 54000, 500kB, 3MB, 1.5 GiB. Raises ValueError."""
    number = text.strip().rstrip("bB").rstrip()
    unit = number[len(number.rstrip("kKmMgGiI")) :]
    number = number.removesuffix(unit).rstrip()
    if unit.lower() not in _UNITS or not number.replace(".", "", 1).isdecimal():
        raise ValueError(f"{text!r} is not a size; write for example 3MB, 3MiB, 500kB or 54000")
    return int(float(number) * _UNITS[unit.lower()])


def bytes_text(size: float) -> str:
    """A size for reading, such as 54.3 kB; the powers are of 1000."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= 0.99995 * factor:
            return f"{size / factor:.{_decimals(size / factor)}f} {unit}"
    return f"{size:.0f} B"


def count_text(count: float) -> str:
    """A number of weights for reading, such as 269 k."""
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= 0.9995 * factor:
            return f"{count / factor:.{_decimals(count / factor)}f} {unit}"
    return f"{count:.0f}"


def seconds_text(seconds: float) -> str:
    """A time for reading, such as 4.2 s or 3 min 20 s."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _decimals(value: float) -> int:
    return 0 if value >= 999.5 else 1 if value >= 99.95 else 2


def screen() -> int | None:
    """Columns that a table may take on standard output; None where that is no terminal, so that nothing is cut."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return max(WIDTH, shutil.get_terminal_size((WIDTH, 0)).columns)


@dataclass(frozen=True)
class Column:
    """One column of a table: its title, whether it holds text (left aligned, cut when too long) or numbers, and the
    width that a text keeps."""

    title: str
    text: bool = False
    least: int = 16


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int | None = None) -> str:
    """A table of at most `width` columns where that can be: the text columns give way, the one with most to spare
    first, but never so far that two texts would look the same. None: nothing is cut.

    A column that is empty in every row is left out.
    """
    cells = [[printable(shortened(cell, _LONGEST)) for cell in row] for row in rows]
    shown = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in cells)]
    columns, cells = [columns[i] for i in shown], [[row[i] for i in shown] for row in cells]
    widths = _widths(columns, cells, width)
    lines = [_line(columns, widths, [column.title for column in columns])]
    lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines + [_line(columns, widths, row) for row in cells])


def _widths(columns: Sequence[Column], cells: list[list[str]], most: int | None) -> list[int]:
    widths = []
    for i, column in enumerate(columns):
        widths.append(max([len(column.title), *(len(row[i]) for row in cells)]))
    if most is None:
        return widths
    spare = {i: widths[i] - max(column.least, len(column.title)) for i, column in enumerate(columns) if column.text}
    for _ in range(sum(widths) + 2 * (len(widths) - 1) - most):
        longest = max(spare, key=lambda i: spare[i], default=None)
        if longest is None or spare[longest] <= 0:
            break
        widths[longest] -= 1
        spare[longest] -= 1
    for i in spare:
        texts = {row[i] for row in cells}
        while len({shortened(text, widths[i]) for text in texts}) < len(texts):
            widths[i] += 1
    return widths


def _line(columns: Sequence[Column], widths: list[int], row: Sequence[str]) -> str:
    parts = (
        shortened(cell, width).ljust(width) if column.text else cell.rjust(width)
        for column, width, cell in zip(columns, widths, row, strict=True)
    )
    return "  ".join(parts).rstrip()


def shortened(text: str, width: int) -> str:
    """`text` in at most `width` characters, its middle replaced by dots: names differ at both ends."""
    if len(text) <= width:
        return text
    tail = (width - 2) // 2
    return text[: width - 2 - tail] + ".." + text[len(text) - tail :]
