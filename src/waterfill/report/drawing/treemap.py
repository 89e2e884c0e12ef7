"""Area pictures: rectangles as large as their values, in groups.

Squarified treemaps (Bruls, Huizing, van Wijk, Data Visualization 2000).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from waterfill.report.markup import Markup, element

_LETTER = 6.4  # about the width of a letter of 11 units
_LINE = 13.0
_HEAD = 17.0  # above a group, for its name
_FEWEST = 4  # letters of a name that was cut


@dataclass(frozen=True)
class Cell:
    """A value and how it is shown. title: its whole name. tone: a class. link: of the row that tells more, or empty."""

    title: str
    name: str
    value: float
    note: str
    tone: str
    link: str = ""


@dataclass(frozen=True)
class Box:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float

    def inset(self, gap: float, top: float = 0.0) -> "Box":
        """The rectangle within, so much smaller at each side, and at the top by so much more."""
        width, height = max(0.0, self.width - 2 * gap), max(0.0, self.height - 2 * gap - top)
        return Box(self.x + gap, self.y + gap + top, width, height)


def squarified(values: Sequence[float], box: Box) -> list[Box]:
    """Rectangles in a box with areas in proportion to the values, largest first, each as square as can be."""
    total, scale = sum(values), 0.0
    if total > 0:
        scale = box.width * box.height / total
    areas, boxes = [value * scale for value in values], list[Box]()
    while len(boxes) < len(areas):
        row, side = [areas[len(boxes)]], min(box.width, box.height)
        for area in areas[len(boxes) + 1 :]:
            if _worst([*row, area], side) > _worst(row, side):
                break
            row.append(area)
        placed, box = _laid(row, box)
        boxes += placed
    return boxes


def _worst(row: Sequence[float], side: float) -> float:
    total = sum(row)
    if not total or not side:
        return 0.0
    return max(max(side * side * area / total**2, total**2 / (side * side * area)) for area in row if area)


def _laid(row: Sequence[float], box: Box) -> tuple[list[Box], Box]:
    """A row along the shorter side of a box, and what is left of the box."""
    total, wide = sum(row), box.width >= box.height
    side = box.height if wide else box.width
    depth, at, boxes = (total / side if side else 0.0), 0.0, []
    for area in row:
        length = area / depth if depth else 0.0
        boxes.append(Box(box.x, box.y + at, depth, length) if wide else Box(box.x + at, box.y, length, depth))
        at += length
    if wide:
        return boxes, Box(box.x + depth, box.y, max(0.0, box.width - depth), box.height)
    return boxes, Box(box.x, box.y + depth, box.width, max(0.0, box.height - depth))


def drawn(groups: dict[str, list[Cell]], width: float, height: float, about: str, class_: str = "") -> Markup:
    """The picture of groups of cells, the largest first."""
    order = sorted(groups, key=lambda name: -sum(cell.value for cell in groups[name]))
    totals = [sum(cell.value for cell in groups[name]) for name in order]
    body = [element("title", about)]
    for name, box in zip(order, squarified(totals, Box(0, 0, width, height)), strict=True):
        body += _group(name, sorted(groups[name], key=lambda cell: -cell.value), box)
    return element(
        "svg",
        *body,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        class_=f"chart treemap {class_}".strip(),
        role="img",
    )


def _group(name: str, cells: list[Cell], box: Box) -> list[Markup]:
    headed = len(cells) > 1 and box.height > 3 * _HEAD and box.width > 40
    inner = box.inset(1.5, _HEAD if headed else 0.0)
    title = [_text(_cut(name, box.width - 8), box.x + 4, box.y + 13, "group")] if headed else []
    boxes = squarified([cell.value for cell in cells], inner)
    return [*title, *(_cell(cell, own.inset(0.5)) for cell, own in zip(cells, boxes, strict=True))]


def _cell(cell: Cell, box: Box) -> Markup:
    shape = element(
        "rect", x=round(box.x, 1), y=round(box.y, 1), width=round(box.width, 1), height=round(box.height, 1)
    )
    lines = [_cut(cell.name, box.width - 8), cell.note if len(cell.note) * _LETTER <= box.width - 8 else ""]
    room = int((box.height - 5) / _LINE)
    shown = [line for line in lines if line][:room]
    texts = [_text(line, box.x + 4, box.y + 3 + _LINE * (i + 1) - 3, "cell") for i, line in enumerate(shown)]
    inside = [element("title", f"{cell.title}: {cell.note}"), shape, *texts]
    if not cell.link:
        return element("g", *inside, class_=cell.tone)
    return element("a", *inside, href=f"#{cell.link}", tabindex=-1, class_=cell.tone)


def _text(text: str, x: float, y: float, class_: str) -> Markup:
    return element("text", text, class_=class_, x=round(x, 1), y=round(y, 1))


def _cut(text: str, width: float) -> str:
    """As much of a name as fits: its last parts, or the beginning of the last one; nothing where that is too little."""
    fits, parts = int(width / _LETTER), text.split(".")
    endings = (".".join(parts[i:]) for i in range(len(parts)))
    short = next((ending for ending in endings if len(ending) <= fits), "")
    return short or (f"{parts[-1][: fits - 1]}…" if fits >= _FEWEST else "")
