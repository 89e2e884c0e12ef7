"""Histograms: values before and after, and codes under their density."""

from collections.abc import Sequence

from waterfill.report.drawing.axes import Axis
from waterfill.report.markup import Markup, element

WIDTH, HEIGHT = 440.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 10.0, 12.0, 42.0


def before_and_after(edges: Sequence[float], before: Sequence[float], after: Sequence[float], about: str) -> Markup:
    """Shares in bins: those before as an area, those after as bars in front of it."""
    across = Axis(edges[0], edges[-1], _LEFT, WIDTH - _RIGHT)
    up = _up([*before, *after])
    area = element("path", class_="before", d=_steps(edges, before, across, up)) if before else Markup("")
    bars = _bars(list(zip(edges[:-1], edges[1:], after, strict=True)), across, up, 0.3)
    ticks = across.ticks(5)
    return _framed((about, "value of an entry"), [area, *bars], ticks, across, up)


def codes(low: int, found: Sequence[float], expected: Sequence[float], about: str) -> Markup:
    """Shares of the codes from `low` on as bars, and those that are expected as a line."""
    across = Axis(low - 0.6, low + len(found) - 0.4, _LEFT, WIDTH - _RIGHT)
    up = _up([*found, *expected])
    bars = _bars([(low + i - 0.4, low + i + 0.4, share) for i, share in enumerate(found)], across, up, 0.0)
    places = [(across.place(low + i), up.place(share)) for i, share in enumerate(expected)]
    line = element("polyline", class_="expected", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places))
    dots = [element("circle", class_="dot", cx=round(x, 1), cy=round(y, 1), r=2.2) for x, y in places]
    step = max(1, round(len(found) / 9))
    ticks = [(float(code), f"{code}") for code in range(low, low + len(found)) if code % step == 0]
    return _framed((about, "code"), [*bars, line, *(dots if len(dots) < 40 else [])], ticks, across, up)


def _up(shares: Sequence[float]) -> Axis:
    return Axis(0.0, 1.08 * max(shares, default=0.0) or 1.0, HEIGHT - _BOTTOM, _TOP)


def _bars(bars: Sequence[tuple[float, float, float]], across: Axis, up: Axis, gap: float) -> list[Markup]:
    drawn = []
    for left, right, share in bars:
        x, top = across.place(left), up.place(share)
        width = max(0.4, across.place(right) - x - gap)
        if share > 0:
            box = {"x": round(x, 1), "y": round(top, 1), "width": round(width, 1), "height": round(up.start - top, 1)}
            drawn.append(element("rect", class_="after", **box))
    return drawn


def _steps(edges: Sequence[float], shares: Sequence[float], across: Axis, up: Axis) -> str:
    places = [f"M{across.place(edges[0]):.1f},{up.start:.1f}"]
    for right, share in zip(edges[1:], shares, strict=True):
        places.append(f"V{up.place(share):.1f}H{across.place(right):.1f}")
    return "".join([*places, f"V{up.start:.1f}Z"])


def _framed(
    about: tuple[str, str], body: Sequence[Markup], ticks: Sequence[tuple[float, str]], across: Axis, up: Axis
) -> Markup:
    """The picture; about: what it shows, and what the axis below is."""
    grid = []
    for value, _ in up.ticks(4):
        at = up.place(value)
        grid.append(element("line", class_="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=at, y2=at))
        grid.append(element("text", f"{100 * value:.3g} %", class_="tick", x=_LEFT - 6, y=at + 4, text_anchor="end"))
    base = element("line", class_="axis", x1=_LEFT, x2=WIDTH - _RIGHT, y1=up.start, y2=up.start)
    below = [
        element("text", text, class_="tick", x=across.place(value), y=up.start + 16, text_anchor="middle")
        for value, text in ticks
    ]
    label = element("text", about[1], class_="label", x=WIDTH - _RIGHT, y=HEIGHT - 6, text_anchor="end")
    box = f"0 0 {WIDTH:g} {HEIGHT:g}"
    picture = [element("title", about[0]), *grid, *body, base, *below, label]
    return element("svg", *picture, xmlns="http://www.w3.org/2000/svg", viewBox=box, class_="chart", role="img")
