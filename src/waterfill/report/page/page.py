"""The page: one file that needs no other, for a screen of any width, light or dark, a keyboard or a screen reader."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any

from waterfill.report.listing import grouped, likeness
from waterfill.report.markup import Markup, element, joined
from waterfill.report.page import curves, sections
from waterfill.report.page.facts import Facts, Quality, Row
from waterfill.report.page.numbers import bytes_text, count_text, percent, quality_text

_NAV = {
    "bytes": "Bytes",
    "layers": "Layers",
    "curve": "Bits and errors",
    "quality": "Quality",
    "sensitivity": "Sensitivity",
    "weights": "Weights",
    "pruned": "Pruned",
    "made": "How it was made",
}


def html(facts: Facts) -> str:
    """The whole page, plain text in UTF-8."""
    rows = shown_rows(facts.rows)
    links = {row.item.name: f"t{i}" for i, row in enumerate(rows)}
    parts = [
        sections.area(facts, links),
        sections.layers(facts, rows, links),
        curves.distortion(facts),
        curves.quality(facts),
        sections.sensitivity(facts, rows),
        sections.weights(facts),
        sections.pruned(facts, rows),
        _made(facts),
    ]
    there = [name for name in _NAV if any(f'id="{name}"' in part[:400] for part in parts)]
    links_to = [element("li", element("a", _NAV[name], href=f"#{name}")) for name in there]
    nav = element("nav", element("ul", *links_to), aria_label="Sections")
    main = element("main", _head(facts), sections.warnings(facts), nav, *parts, id="main")
    skip = element("a", "Skip to the content", href="#main", class_="skip")
    body = element("body", skip, main, element("script", Markup(text_of("page.js"))))
    return f"<!doctype html>\n{element('html', _meta(facts), body, lang='en')}\n"


def shown_rows(rows: Sequence[Row]) -> list[Row]:
    """A row for every tensor; for very many one for all that are alike, and of those the largest."""
    if len(rows) <= sections.MOST_ROWS:
        return list(rows)
    alike: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault(likeness(row.item), []).append(row)
    groups = [own[0] if len(own) == 1 else _merged(own) for own in alike.values()]
    if len(groups) <= sections.MOST_ROWS:
        return groups
    least = sorted((row.item.bytes for row in groups), reverse=True)[sections.MOST_ROWS - 1]
    return [row for row in groups if row.item.bytes >= least][: sections.MOST_ROWS]


def _merged(own: Sequence[Row]) -> Row:
    """The row of tensors that are alike."""
    (item,) = grouped([row.item for row in own])
    zeros = [row.zeros for row in own if row.zeros is not None]
    nats = [row.nats for row in own if row.nats is not None]
    outputs = [row.output_error for row in own if row.output_error is not None]
    bits = dict.fromkeys(b for row in own for b in row.sensitivity)
    worst = {b: max(row.sensitivity[b] for row in own if b in row.sensitivity) for b in bits}
    merged = Row(item, sum(zeros) / len(zeros) if zeros else None, nats=sum(nats) if nats else None, sensitivity=worst)
    return replace(merged, output_error=max(outputs, default=None))


def _head(facts: Facts) -> Markup:
    """Title and the numbers that matter most."""
    listing = facts.listing
    tiles = [(bytes_text(listing.size), "size of the file")]
    if listing.original:
        tiles.append((f"{listing.original / listing.size:.1f}×", f"smaller than {bytes_text(listing.original)}"))
    tiles.append((f"{listing.bits:.2f}", "bits per weight, everything counted"))
    tiles.append((count_text(listing.weights), f"weights in {len(facts.rows)} tensors"))
    if facts.error is not None:
        tiles.append((percent(facts.error), "relative error of all weights"))
    known = {quality.metric: quality for quality in facts.quality}
    first = next((known[name] for name in ("accuracy", "perplexity") if name in known), None)
    shown = [first, known.get("divergence"), known.get("agreement")]
    tiles += [_tile(quality) for quality in shown if quality is not None]
    items = [element("div", element("dt", name), element("dd", value)) for value, name in tiles]
    switch = element("button", "Dark", type="button", id="theme", hidden=True)
    top = element("div", element("p", "waterfill report", class_="brand"), switch, class_="top")
    return element("header", top, element("h1", facts.title), element("dl", *items, class_="tiles"))


def _tile(quality: Quality) -> tuple[str, str]:
    name = quality.metric.replace("_", " ")
    if quality.metric in ("divergence", "agreement", "output_error"):
        return quality_text(quality.file, quality.points), f"{name} with the original, {quality.inputs:,} inputs"
    before = quality_text(quality.original, quality.points)
    return quality_text(quality.file, quality.points), f"{name}, before {before}; {quality.inputs:,} inputs"


def _made(facts: Facts) -> Markup:
    """The notes of the file, and what the numbers mean."""
    listing = facts.listing
    samples, budget = listing.notes.get("samples"), listing.notes.get("budget")
    lines = [("recipe", listing.recipe), ("inputs it was made with", f"{samples}" if type(samples) is int else "none")]
    lines += [("norms", listing.folded)] if listing.folded else []
    lines += [("tied tensors", ", ".join(f"{a} = {b}" for a, b in list(listing.aliases.items())[:20]))]
    lines += [("remark", f"{budget}")] if budget else []
    outside = listing.size - sum(row.item.bytes for row in facts.rows)
    lines.append(("names, shapes and checksums", f"{outside:,.0f} bytes"))
    items = [joined(element("dt", name), element("dd", text)) for name, text in lines if text]
    words = "What the file itself says. The numbers of this page are in report.json beside it, if it was saved."
    return sections.section("made", "How it was made", words, element("dl", *items, class_="notes"))


def _meta(facts: Facts) -> Markup:
    sheet, script = joined(Markup(text_of("page.css"))), text_of("page.js")
    policy = (
        f"default-src 'none'; style-src 'sha256-{_hash(sheet)}'; script-src 'sha256-{_hash(script)}'; base-uri 'none'"
    )
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{facts.title}: waterfill report"),
        element("style", sheet),
    )


@cache
def text_of(name: str) -> str:
    """A text that lies beside the code: the style of a page with that of its pictures, or its script."""
    folder = resources.files("waterfill.report")
    own = folder.joinpath("page", name).read_text("utf-8")
    return folder.joinpath("drawing", "chart.css").read_text("utf-8") + own if name.endswith(".css") else own


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
