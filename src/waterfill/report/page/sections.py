"""The sections of a page: each a heading, a sentence that says what is seen, and a picture or a table."""

import re
from collections.abc import Sequence

from waterfill.report.drawing import treemap
from waterfill.report.drawing.bars import before_and_after, codes
from waterfill.report.markup import Markup, element, joined
from waterfill.report.page.facts import Facts, Row, Weight
from waterfill.report.page.numbers import bytes_text, percent, small
from waterfill.report.page.tables import Cell, Heading, table

MOST_ROWS = 400
"""Rows of a table; of larger files tensors alike share a row, and the smallest are left out."""
_MOST_CELLS = 240  # of the area picture
_BREAKS = (1.0, 1.5, 2.0, 3.0, 4.0, 8.0)  # bits per entry, between the tones of the area picture
_GROUPS = (4, 40)
_MOST_SENSITIVE = 60
_ZEROS = 0.05  # share from which a weight is shown as pruned
_TONES = 7
_LARGEST = 1e300  # infinities are sorted as this


def section(name: str, title: str, about: str, *body: str) -> Markup:
    """A section with its anchor."""
    heading = element("h2", title, id=f"{name}-title")
    return element(
        "section", heading, element("p", about, class_="lede"), *body, id=name, aria_labelledby=f"{name}-title"
    )


def area(facts: Facts, links: dict[str, str]) -> Markup:
    """Where the bytes went."""
    rows = sorted(facts.rows, key=lambda row: -row.item.bytes)
    kept, rest = rows[:_MOST_CELLS], rows[_MOST_CELLS:]
    depth = _depth([row.item.name for row in kept])
    groups: dict[str, list[treemap.Cell]] = {}
    for row in kept:
        item, parts = row.item, row.item.name.split(".")
        owner = ".".join(parts[: min(depth, max(1, len(parts) - 1))])
        bits = 8 * item.bytes / max(1, item.entries * item.count)
        note = f"{bytes_text(item.bytes)}, {bits:.2f} bits"
        name = item.name.removeprefix(f"{owner}.").removesuffix(".weight")
        cell = treemap.Cell(item.name, name, item.bytes, note, f"q{_tone(bits)}", links.get(item.name, ""))
        groups.setdefault(owner, []).append(cell)
    groups = {name: [_alone(name, cells[0])] if len(cells) == 1 else cells for name, cells in groups.items()}
    if rest:
        size = sum(row.item.bytes for row in rest)
        groups["others"] = [treemap.Cell(f"{len(rest)} others", f"{len(rest)} others", size, bytes_text(size), "q0")]
    about = f"Area picture of the bytes of {len(facts.rows)} tensors; the table of layers has the same numbers."
    pictures = [
        treemap.drawn(groups, width, height, about, class_)
        for width, height, class_ in ((1040, 460, "wide"), (360, 520, "narrow"))
    ]
    words = "Each rectangle is a tensor, as large as its bytes in the file; its color says how many bits an entry has."
    return section("bytes", "Where the bytes went", words, *pictures, _scale())


def _alone(owner: str, cell: treemap.Cell) -> treemap.Cell:
    """A tensor that is a group of its own, under its whole name."""
    name = owner if cell.name in (owner, "weight") else f"{owner}.{cell.name}"
    return treemap.Cell(cell.title, name, cell.value, cell.note, cell.tone, cell.link)


def _depth(names: Sequence[str]) -> int:
    """How many parts of a name make a group: as few as give some groups, not too many."""
    counts = [len({".".join(name.split(".")[:depth]) for name in names}) for depth in range(1, 7)]
    fine = [depth for depth, count in enumerate(counts, 1) if _GROUPS[0] <= count <= _GROUPS[1]]
    return fine[0] if fine else 1


def _tone(bits: float) -> int:
    return sum(bits > edge for edge in _BREAKS)


def _scale() -> Markup:
    """The legend of the area picture."""
    names = [f"up to {_BREAKS[0]:g}", *(f"to {edge:g}" for edge in _BREAKS[1:]), f"over {_BREAKS[-1]:g} bits per entry"]
    items = [
        element(
            "li",
            element(
                "svg",
                element("rect", width=14, height=14),
                width=14,
                height=14,
                class_=f"chart treemap q{i}",
                aria_hidden="true",
            ),
            name,
        )
        for i, name in enumerate(names)
    ]
    return element("ul", *items, class_="legend")


_LAYER_HEADINGS = (
    Heading("tensor", text=True),
    Heading("times", about="tensors alike that share this row"),
    Heading("shape"),
    Heading("kind", text=True, about="what it became"),
    Heading("bits", about="per entry, tables and scales included"),
    Heading("bytes"),
    Heading("error", about="norm of the error relative to that of the tensor"),
    Heading("nats", about="what its error is predicted to cost"),
    Heading("outputs", about="relative error of the layer's outputs as the whole network runs"),
    Heading("zeros", about="share of entries that are exactly zero"),
)


def layers(facts: Facts, rows: Sequence[Row], links: dict[str, str]) -> Markup:
    """What became of every tensor."""
    field = element("input", type="search", id="filter", autocomplete="off", placeholder="part of a name or a kind")
    count = element("span", id="count", role="status")
    control = element("p", element("label", "Show only ", field), " ", count, class_="control", hidden=True)
    left = len(facts.rows) - sum(row.item.count for row in rows)
    words = "Every tensor of the file; a click on a column's name sorts by it."
    if any(row.item.count > 1 for row in rows):
        words += " Tensors whose names differ in numbers only share a row: sums of bytes and nats, the largest error."
    if left > 0:
        words += f" The {left} smallest are left out here; report.json has all."
    cells = [_layer(row) for row in rows]
    own = [links[row.item.name] for row in rows]
    return section(
        "layers",
        "Layers",
        words,
        control,
        table(_LAYER_HEADINGS, cells, "Tensors of the file", links=own, filtered="filter"),
    )


def _layer(row: Row) -> list[Cell]:
    item = row.item
    bits = 8 * item.bytes / max(1, item.entries * item.count)
    kind = f"{item.part} ({item.reason})" if item.reason else item.part
    return [
        Cell(item.name),
        Cell(f"{item.count}" if item.count > 1 else "", float(item.count)),
        Cell(" × ".join(map(str, item.shape)) or "scalar", float(item.entries)),
        Cell(f"{kind} ⚠ {item.warning}" if item.warning else kind),
        Cell(f"{bits:.2f}", bits),
        Cell(f"{item.bytes:,.0f}", float(item.bytes)),
        Cell(percent(item.error), item.error),
        Cell(small(row.nats, 2), row.nats),
        Cell(percent(row.output_error), row.output_error),
        Cell(percent(row.zeros, 1), row.zeros),
    ]


def sensitivity(facts: Facts, rows: Sequence[Row]) -> Markup:
    """What the network loses if one weight alone is rounded."""
    known = [row for row in rows if row.sensitivity]
    if not known:
        return Markup("")
    bits = list(dict.fromkeys(b for row in known for b in row.sensitivity))
    key = bits[min(1, len(bits) - 1)]
    known.sort(key=lambda row: -row.sensitivity.get(key, 0.0))
    known = known[:_MOST_SENSITIVE]
    values = sorted(value for row in known for value in row.sensitivity.values() if value > 0)
    headings = [Heading("tensor", text=True), *(Heading(f"{b} bits") for b in bits)]
    cells = [[Cell(row.item.name), *(_heat(row.sensitivity.get(b), values) for b in bits)] for row in known]
    words = (
        f"The loss of the whole network, in {facts.sensitivity_in}, if this weight alone is rounded to so many bits in "
        "groups of 128: the most sensitive first, and the stronger the color, the worse."
    )
    return section("sensitivity", "Sensitivity", words, table(headings, cells, "Loss by weight and bits"))


def _heat(value: float | None, values: Sequence[float]) -> Cell:
    if value is None:
        return Cell("")
    rank = sum(other < value for other in values) / max(1, len(values))
    return Cell(small(value, 2), min(value, _LARGEST), f"h{min(_TONES - 1, int(_TONES * rank))}")


def weights(facts: Facts) -> Markup:
    """Weights before and after, and their codes."""
    if not facts.weights:
        return Markup("")
    options = [element("option", weight.name, value=f"w{i}") for i, weight in enumerate(facts.weights)]
    choice = element("label", "Weight ", element("select", *options, id="weight"))
    control = element("p", choice, class_="control", hidden=True)
    figures = [_figure(weight, i) for i, weight in enumerate(facts.weights)]
    words = (
        "First how the entries of a weight are spread, gray before and blue after; then how often each integer code "
        "occurs (bars), and how often the density that codes it expects it (line): the closer, the fewer bits."
    )
    return section("weights", "Weights before and after", words, control, *figures)


def _figure(weight: Weight, number: int) -> Markup:
    before = "before and after" if weight.before else "in the file"
    left = before_and_after(weight.edges, weight.before, weight.after, f"Histogram of {weight.name}, {before}")
    right = Markup("")
    if weight.found:
        about = f"Histogram of {weight.codes_of} of {weight.name}, and the density that codes them"
        right = codes(weight.low, weight.found, weight.expected, about)
    caption = element("figcaption", weight.name)
    return element("figure", caption, element("div", left, right, class_="pair"), id=f"w{number}", class_="weight")


def pruned(facts: Facts, rows: Sequence[Row]) -> Markup:
    """What is exactly zero, and which channels are gone."""
    known = [row for row in rows if row.item.weights and len(row.item.shape) > 1 and row.zeros is not None]
    shown = sorted(
        (row for row in known if (row.zeros or 0) >= _ZEROS or any(row.dead)), key=lambda row: -(row.zeros or 0)
    )
    words = (
        "Entries that are exactly zero once restored, whether a recipe asked for it or they were not worth their bits."
    )
    body: list[Markup] = []
    if shown:
        headings = [
            Heading("tensor", text=True),
            Heading("zeros"),
            Heading("outputs all zero"),
            Heading("inputs all zero"),
        ]
        cells = [
            [
                Cell(r.item.name),
                Cell(percent(r.zeros, 1), r.zeros),
                *(Cell(f"{n}" if n else "", float(n)) for n in r.dead),
            ]
            for r in shown[:_MOST_SENSITIVE]
        ]
        body.append(table(headings, cells, "Zeros by weight"))
    else:
        words = (
            f"No weight of two dimensions or more has {100 * _ZEROS:.0f} % of zeros, or an output or input of zeros."
        )
    if facts.removed:
        names = [Heading("layer", text=True), Heading("channels left", text=True)]
        left = [
            [Cell(name), Cell(", ".join(f"{re.sub('^[.]', '', k)} {v}" for k, v in sizes.items()))]
            for name, sizes in facts.removed.items()
        ]
        body += [
            element("p", "Channels were removed for good before the network was compressed; these layers are smaller."),
            table(names, left, "Layers with fewer channels"),
        ]
    return section("pruned", "What was pruned", words, *body)


def warnings(facts: Facts) -> Markup:
    """What a user should know first."""
    texts = [facts.listing.warning] if facts.listing.warning else []
    warned = [row.item for row in facts.rows if row.item.warning]
    texts += [f"{item.name}: {item.warning}" for item in warned[:5]]
    texts += [f"and {len(warned) - 5} warnings more in the table of layers"] if len(warned) > 5 else []
    items = [element("li", text) for text in texts]
    return element("aside", element("h2", "Warnings"), element("ul", *items), class_="warn") if items else joined()
