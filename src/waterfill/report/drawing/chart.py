"""Line charts: series as lines and marks over two axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from waterfill.report.drawing.axes import Axis
from waterfill.report.markup import Markup, element, joined

_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 16.0, 14.0, 46.0
_MARK = 4.2
_COLORS = 6


@dataclass(frozen=True)
class Series:
    """A name and points (x, y). bound: a dashed line without marks. notes: what each point is, where its numbers do not
    say it."""

    name: str
    points: Sequence[tuple[float, float]]
    bound: bool = False
    notes: Sequence[str] = ()

    def note(self, i: int) -> str:
        """What a point is."""
        x, y = self.points[i]
        return f"{self.name}: {self.notes[i] if self.notes else f'{x:.4g}, {y:.4g}'}"


@dataclass(frozen=True)
class Chart:
    """x, y: what the axes are. levels: named horizontal lines. about: the picture in a sentence, for those who do not
    see it. within: the least and the greatest y that are shown; what lies beyond is cut off. The first series lies on
    top of the others."""

    x: str
    y: str
    about: str
    series: Sequence[Series]
    levels: Sequence[tuple[str, float]] = ()
    logarithmic: bool = False
    within: tuple[float, float] = (-math.inf, math.inf)

    def drawn(self, width: float, height: float, class_: str = "") -> Markup:
        """The picture, so many units wide and high."""
        across, up = self._axes(width, height)
        grid = [*self._across(across, up, height), *self._up(across, up)]
        numbered = number(self.series)
        body = [self._series(one, numbered[one.name], across, up) for one in reversed(self.series)]
        for name, value in self.levels:
            at = up.place(value)
            grid.append(element("line", class_="level", x1=across.start, x2=across.end, y1=at, y2=at))
            grid.append(element("text", name, class_="tick", x=across.end, y=at - 5, text_anchor="end"))
        box = f"0 0 {width:g} {height:g}"
        return element(
            "svg",
            element("title", self.about),
            *grid,
            _cut(body, across, up),
            xmlns="http://www.w3.org/2000/svg",
            viewBox=box,
            class_=f"chart {class_}".strip(),
            role="img",
        )

    def _axes(self, width: float, height: float) -> tuple[Axis, Axis]:
        points = [point for one in self.series for point in one.points]
        across = Axis.around([0.0, *(x for x, _ in points)], _LEFT, width - _RIGHT)
        low, high = self.within
        values = [min(max(y, low), high) for y in (*(y for _, y in points), *(value for _, value in self.levels))]
        return across, Axis.around(values, height - _BOTTOM, _TOP, self.logarithmic)

    def _across(self, across: Axis, up: Axis, height: float) -> list[Markup]:
        """Ticks and name of the axis below."""
        ticks = across.ticks(max(2, int((across.end - across.start) / 60)))
        places = [(across.place(value), text) for value, text in ticks]
        marks = [element("line", class_="axis", x1=x, x2=x, y1=up.start, y2=up.start + 4) for x, _ in places]
        names = [element("text", text, class_="tick", x=x, y=up.start + 18, text_anchor="middle") for x, text in places]
        base = element("line", class_="axis", x1=across.start, x2=across.end, y1=up.start, y2=up.start)
        label = element("text", self.x, class_="label", x=across.end, y=height - 8, text_anchor="end")
        return [base, *marks, *names, label]

    def _up(self, across: Axis, up: Axis) -> list[Markup]:
        """Grid lines and ticks of the axis at the left."""
        lines = []
        for value, text in up.ticks(max(3, int((up.start - up.end) / 45))):
            at = up.place(value)
            lines.append(element("line", class_="grid", x1=across.start, x2=across.end, y1=at, y2=at))
            lines.append(element("text", text, class_="tick", x=across.start - 8, y=at + 4, text_anchor="end"))
        return lines

    def _series(self, one: Series, color: int | None, across: Axis, up: Axis) -> Markup:
        known = [i for i, (x, y) in enumerate(one.points) if _drawable(x, y, self.logarithmic)]
        places = [(across.place(one.points[i][0]), up.place(one.points[i][1])) for i in known]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        line = element("polyline", class_="bound" if one.bound else "line", points=path)
        if one.bound or color is None:
            return line
        marks = [
            element("path", element("title", one.note(i)), d=mark(color, x, y))
            for i, (x, y) in zip(known, places, strict=True)
        ]
        return element("g", *([line] if len(places) > 1 else []), *marks, class_=f"s{color}")

    def legend(self) -> Markup:
        """The names of the series with their marks, as a list."""
        numbered = number(self.series)
        items = [element("li", swatch(numbered[one.name]), one.name) for one in self.series]
        return element("ul", *items, class_="legend")


def _cut(body: Sequence[Markup], across: Axis, up: Axis) -> Markup:
    """What is drawn, cut off where the axes end, with room for marks at the other sides."""
    left, top = across.start - 2 * _MARK, up.end - 2 * _MARK
    box = {"width": across.end - left + 2 * _MARK, "height": up.start - top + 1}
    view = f"{left:g} {top:g} {box['width']:g} {box['height']:g}"
    return element("svg", *body, x=left, y=top, **box, viewBox=view, aria_hidden="true")


def number(series: Sequence[Series]) -> dict[str, int | None]:
    """The color of each series by its name; None for bounds."""
    marked = [one.name for one in series if not one.bound]
    colors: dict[str, int | None] = {name: i % _COLORS for i, name in enumerate(dict.fromkeys(marked))}
    return colors | {one.name: None for one in series if one.bound}


def swatch(color: int | None) -> Markup:
    """The mark of a series, for a legend."""
    drawn = element("line", class_="bound", x1=1, x2=19, y1=7, y2=7)
    if color is not None:
        drawn = element("g", element("path", d=mark(color, 10, 7)), class_=f"s{color}")
    return element("svg", drawn, viewBox="0 0 20 14", width=20, height=14, class_="chart", aria_hidden="true")


def mark(kind: int, x: float, y: float) -> str:
    """The outline of a mark: each color has a shape of its own too."""
    corners, turn = ((0, 0), (4, 45), (3, -90), (4, 0), (5, -90), (6, 0))[kind]
    if not corners:
        return f"M{x - _MARK:.1f},{y:.1f}a{_MARK},{_MARK} 0 1 0 {2 * _MARK},0a{_MARK},{_MARK} 0 1 0 {-2 * _MARK},0"
    angles = [math.radians(turn + 360 * i / corners) for i in range(corners)]
    points = [(x + 1.2 * _MARK * math.cos(a), y + 1.2 * _MARK * math.sin(a)) for a in angles]
    return "M" + "L".join(f"{px:.1f},{py:.1f}" for px, py in points) + "Z"


def _drawable(x: float, y: float, logarithmic: bool) -> bool:
    return math.isfinite(x) and math.isfinite(y) and (y > 0 or not logarithmic)


def standalone(chart: Chart, style: str) -> str:
    """A chart as a file of its own, with its legend."""
    names = number(chart.series)
    lines = []
    for i, one in enumerate(chart.series):
        color, at = names[one.name], 22 + 20 * i
        sign = element("line", class_="bound", x1=58, x2=76, y1=at - 4, y2=at - 4)
        if color is not None:
            sign = element("g", element("path", d=mark(color, 67, at - 4)), class_=f"s{color}")
        lines += [sign, element("text", one.name, class_="name", x=84, y=at)]
    top = 44.0 + 20 * len(chart.series)
    lines.append(element("text", chart.y, class_="label", x=14, y=top - 2))
    inner = chart.drawn(720, 400)
    placed = element("svg", inner, x=0, y=top, width=720, height=400)
    sheet = element("style", Markup(style))
    back = element("rect", class_="paper", width="100%", height="100%")
    box = f"0 0 720 {400 + top:g}"
    whole = element(
        "svg", sheet, back, joined(*lines), placed, xmlns="http://www.w3.org/2000/svg", viewBox=box, class_="chart"
    )
    return f"{whole}\n"
