"""Line charts as SVG: no plotting library, the same bytes for the same figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 48, 20, 44, 36


@dataclass(frozen=True)
class Line:
    """A name, a color and points (x, y) by ascending x."""

    name: str
    color: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """x_ticks, y_ticks: (place, what is written there), the first and the last being the ends of the axis.

    levels: named horizontal lines. What lies beyond the axes is cut off.
    """

    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    levels: Sequence[tuple[str, float]] = ()

    def drawn(self, inside: str) -> list[str]:
        """The elements, in a field of `WIDTH` by `HEIGHT`. inside: a name for the area of the plot."""
        plot = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"'
        body = [f'<clipPath id="{inside}"><rect {plot}/></clipPath>', *self._frame(), f'<g clip-path="url(#{inside})">']
        ends = self.x_ticks[0][0], self.x_ticks[-1][0]
        right = self._x(ends[1]) - 8
        for name, y in self.levels:
            body.append(self._path([(ends[0], y), (ends[1], y)], "#666", dashes="5 4"))
            body.append(_text(right, self._y(y) - 8, name, color="#666", anchor="end"))
        for line in self.lines:
            body.append(self._path(line.points, line.color))
            places = [(self._x(x), self._y(y)) for x, y in line.points]
            body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{line.color}"/>' for x, y in places]
        for place, line in enumerate(self.lines):
            height = HEIGHT - BOTTOM - 20 * (len(self.lines) - place) + 8
            body.append(_text(right, height, line.name, color=line.color, anchor="end"))
        return [*body, "</g>"]

    def _frame(self) -> list[str]:
        """Title, grid and what is written along the axes."""
        body = [_text(LEFT, 22, self.title, color="#111")]
        for y, name in self.y_ticks:
            body.append(self._path([(self.x_ticks[0][0], y), (self.x_ticks[-1][0], y)], "#ddd", width=1))
            body.append(_text(LEFT - 8, self._y(y) + 4, name, anchor="end"))
        return body + [_text(self._x(x), HEIGHT - BOTTOM + 20, name, anchor="middle") for x, name in self.x_ticks]

    def _x(self, value: float) -> float:
        share = (value - self.x_ticks[0][0]) / (self.x_ticks[-1][0] - self.x_ticks[0][0])
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def _y(self, value: float) -> float:
        share = (value - self.y_ticks[0][0]) / (self.y_ticks[-1][0] - self.y_ticks[0][0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def _path(self, points: list[tuple[float, float]], color: str, width: float = 2, dashes: str = "") -> str:
        places = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        return f'<polyline points="{places}" fill="none" stroke="{color}" stroke-width="{width}"{dashed}/>'


def draw(charts: Sequence[Chart], across: int = 1) -> str:
    """The charts, so many in a row, as one picture."""
    down = -(-len(charts) // across)
    size = f'viewBox="0 0 {across * WIDTH} {down * HEIGHT}" font-family="sans-serif" font-size="13"'
    pieces = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', '<rect width="100%" height="100%" fill="white"/>']
    for i, chart in enumerate(charts):
        place = f"translate({i % across * WIDTH} {i // across * HEIGHT})"
        pieces += [f'<g transform="{place}">', *chart.drawn(f"inside-{i}"), "</g>"]
    return "\n".join([*pieces, "</svg>", ""])


def _text(x: float, y: float, text: str, color: str = "#444", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}">{escape(text)}</text>'
