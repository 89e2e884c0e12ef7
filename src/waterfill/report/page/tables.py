"""Tables of a page: numbers aligned, columns that can be sorted, what is empty throughout left out."""

from collections.abc import Sequence
from dataclasses import dataclass

from waterfill.report.markup import Markup, element


@dataclass(frozen=True)
class Cell:
    """What a cell shows, the number by which it is sorted (or its text), and its class."""

    text: str
    value: float | None = None
    tone: str = ""


@dataclass(frozen=True)
class Heading:
    """A column: its title, whether it holds text, and what it means."""

    title: str
    text: bool = False
    about: str = ""


def table(
    headings: Sequence[Heading],
    rows: Sequence[Sequence[Cell]],
    caption: str,
    *,
    links: Sequence[str] = (),
    filtered: str = "",
) -> Markup:
    """A table. links: the anchor of each row. filtered: the name of the field that filters it, or empty."""
    shown = [i for i in range(len(headings)) if i == 0 or any(row[i].text for row in rows)]
    head = element("tr", *[_heading(headings[i]) for i in shown])
    body = []
    for number, row in enumerate(rows):
        cells = [_cell(row[i], headings[i], first=i == shown[0]) for i in shown]
        body.append(element("tr", *cells, id=links[number] if links else None))
    whole = element(
        "table",
        element("caption", caption),
        element("thead", head),
        element("tbody", *body),
        data_filter=filtered or None,
    )
    return element("div", whole, class_="scroll", role="region", aria_label=caption, tabindex=0)


def _heading(heading: Heading) -> Markup:
    button = element("button", heading.title, type="button", title=heading.about or None)
    return element("th", button, scope="col", class_=None if heading.text else "n")


def _cell(cell: Cell, heading: Heading, first: bool) -> Markup:
    tone = " ".join(filter(None, ("" if heading.text else "n", cell.tone))) or None
    given = {"class_": tone, "data_v": None if cell.value is None else f"{cell.value:.6g}"}
    return element("th", cell.text, scope="row", **given) if first else element("td", cell.text, **given)


def numbers(headings: Sequence[Heading], rows: Sequence[Sequence[Cell]], caption: str) -> Markup:
    """The numbers of a picture, folded away."""
    return element("details", element("summary", "The numbers"), table(headings, rows, caption))
