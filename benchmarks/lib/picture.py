"""A line chart as SVG: no plotting library, the same bytes for the same figures."""

from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 48, 20, 44, 36
X_TICKS = tuple(range(60, 241, 30))
Y_TICKS = tuple(range(70, 96, 5))


@dataclass(frozen=True)
class Line:
    """A name, a color and points (x, y) by ascending x."""

    name: str
    color: str
    points: list[tuple[float, float]]


def draw(title: str, lines: list[Line], levels: list[tuple[str, float]]) -> str:
    """The chart; `levels` are named horizontal lines. What lies beyond the axes is cut off."""
    body = [*_frame(title), '<g clip-path="url(#inside)">']
    for name, y in levels:
        body.append(_path([(X_TICKS[0], y), (X_TICKS[-1], y)], "#666", dashes="5 4"))
        body.append(_text(_x(X_TICKS[-1]) - 8, _y(y) - 8, name, color="#666", anchor="end"))
    for place, line in enumerate(lines):
        body.append(_path(line.points, line.color))
        body += [f'<circle cx="{_x(x):.1f}" cy="{_y(y):.1f}" r="4" fill="{line.color}"/>' for x, y in line.points]
        height = HEIGHT - BOTTOM - 24 * (len(lines) - place)
        body.append(_text(_x(X_TICKS[-1]) - 8, height, line.name, color=line.color, anchor="end"))
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    plot = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"'
    paper = f'<clipPath id="inside"><rect {plot}/></clipPath><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    return "\n".join([head, paper, *body, "</g>", "</svg>", ""])


def _frame(title: str) -> list[str]:
    """Title, grid and the numbers along the axes."""
    body = [_text(LEFT, 22, title, color="#111")]
    for y in Y_TICKS:
        body.append(_path([(X_TICKS[0], y), (X_TICKS[-1], y)], "#ddd", width=1))
        body.append(_text(LEFT - 8, _y(y) + 4, str(y), anchor="end"))
    body += [_text(_x(x), HEIGHT - BOTTOM + 20, str(x), anchor="middle") for x in X_TICKS]
    return body


def _x(value: float) -> float:
    share = (value - X_TICKS[0]) / (X_TICKS[-1] - X_TICKS[0])
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(value: float) -> float:
    share = (value - Y_TICKS[0]) / (Y_TICKS[-1] - Y_TICKS[0])
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _path(points: list[tuple[float, float]], color: str, width: float = 2, dashes: str = "") -> str:
    places = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in points)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{places}" fill="none" stroke="{color}" stroke-width="{width}"{dashed}/>'


def _text(x: float, y: float, text: str, color: str = "#444", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}">{escape(text)}</text>'
