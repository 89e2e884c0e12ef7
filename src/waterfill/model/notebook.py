"""How a compressed model looks in a notebook: its totals, and its largest tensors."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_MOST = 12  # rows
_LEFT, _RIGHT = ' style="text-align:left"', ' style="text-align:right"'
_TITLES = (("tensor", _LEFT), ("shape", _RIGHT), ("part", _LEFT), ("bits/entry", _RIGHT), ("bytes", _RIGHT))


def shown(summary: str, rows: Sequence[Mapping[str, Any]], warnings: Sequence[str]) -> str:
    """HTML of rows as `CompressedModel.table` gives them, those of the most bytes; all text escaped."""
    largest = sorted(rows, key=lambda row: -row["bytes"])[:_MOST]
    titles = [*_TITLES, *([("error", _RIGHT)] if any(row["error"] is not None for row in largest) else [])]
    head = "".join(f"<th{side}>{title}</th>" for title, side in titles)
    body = "".join(f"<tr>{_cells(row, len(titles))}</tr>" for row in largest)
    lines = [f"<p>{_text(summary)}</p>", *(f"<p>⚠ {_text(warning)}</p>" for warning in warnings)]
    lines.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    if len(rows) > len(largest):
        size = sum(row["bytes"] for row in rows) - sum(row["bytes"] for row in largest)
        lines.append(f"<p>and {len(rows) - len(largest)} tensors more, {size:,} bytes</p>")
    return f"<div>{''.join(lines)}</div>"


def _cells(row: Mapping[str, Any], count: int) -> str:
    shape = "x".join(map(str, row["shape"])) or "scalar"
    error = "" if row["error"] is None else f"{100 * row['error']:.2f} %"
    texts = [row["name"], shape, row["part"], f"{row['bits']:.2f}", f"{row['bytes']:,}", error][:count]
    sides = [_LEFT, _RIGHT, _LEFT, _RIGHT, _RIGHT, _RIGHT]
    return "".join(f"<td{side}>{_text(text)}</td>" for text, side in zip(texts, sides, strict=False))


def _text(text: str) -> str:
    """Text that cannot act: no markup, no marks of direction."""
    return escape("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))
