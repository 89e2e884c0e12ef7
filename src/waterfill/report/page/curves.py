"""The curves of a page: what errors cost against bits, and quality against bytes."""

import math
from collections.abc import Callable, Sequence

from waterfill.report.drawing.chart import Chart, Series
from waterfill.report.markup import Markup, element, joined
from waterfill.report.page.facts import Facts, Point
from waterfill.report.page.numbers import bytes_text, quality_text, small
from waterfill.report.page.sections import section
from waterfill.report.page.tables import Cell, Heading, numbers

_FAR = 0.2  # of a share below the original's, and
_TIMES = 3.0  # what is a loss over the original's: beyond, quality is not drawn
SHARES = ("accuracy", "top5", "agreement", "output_error")
"""Metrics that are shares, shown in percent."""


def distortion(facts: Facts) -> Markup:
    """Cost of the errors against bits per weight: this file, its bound, and what else is known."""
    series = series_of(facts.points, "rate", "nats", lambda p: f"{p.rate:.3f} bits per weight, {small(p.nats)} nats")
    if not facts.bound or not series:
        return Markup("")
    chart = Chart(
        "bits per weight, norms and biases apart",
        "nats",
        "Cost of the errors in nats, on a logarithmic scale, against bits per weight: this file, the bound, others.",
        [Series("rate-distortion bound", facts.bound, bound=True), *series],
        logarithmic=True,
    )
    costs = "as measured with inputs" if facts.measured else "as assumed without inputs"
    words = (
        f"What all errors together are predicted to cost the network's outputs, in nats (upwards, {costs}), against "
        "bits per weight: below the dashed line no code for Gaussian weights of these variances can go."
    )
    headings = [Heading("result", text=True), Heading("bits per weight"), Heading("nats")]
    rows = [
        [Cell(p.series), Cell(small(p.rate, 4), p.rate), Cell(small(p.nats), p.nats)]
        for p in [*facts.points, *_some(facts.bound)]
        if p.rate is not None and p.nats
    ]
    return section(
        "curve", "Bits and errors", words, both(chart), numbers(headings, rows, "Cost of the errors by bits")
    )


def quality(facts: Facts) -> Markup:
    """Quality against the bytes of the file, where files were compared."""
    points = [point for point in facts.points if point.quality is not None and point.bytes]
    if len(points) < 2:
        return Markup("")
    chart = quality_chart(points, facts.metric, facts.reference)
    words = (
        f"The {facts.metric.replace('_', ' ')} of the network against the size of its file, as it was measured. What "
        "is far worse than the original is cut off; the numbers have it."
    )
    share = facts.metric in SHARES
    headings = [Heading("result", text=True), Heading("bytes"), Heading("bits per weight"), Heading(facts.metric)]
    rows = [
        [
            Cell(p.series),
            Cell(f"{p.bytes:,.0f}", p.bytes),
            Cell(small(p.bits, 4), p.bits),
            Cell(quality_text(p.quality or 0.0, share), p.quality),
        ]
        for p in points
    ]
    return section("quality", "Quality and size", words, both(chart), numbers(headings, rows, "Quality by bytes"))


def quality_chart(points: Sequence[Point], metric: str, original: float | None) -> Chart:
    """The chart of quality against kilobytes."""
    share = metric in SHARES
    unit = 100.0 if share else 1.0

    def note(p: Point) -> str:
        return f"{bytes_text(p.bytes or 0)}, {quality_text(p.quality or 0.0, share)}"

    series = [
        Series(one.name, [(x / 1000, unit * y) for x, y in one.points], notes=one.notes)
        for one in series_of(points, "bytes", "quality", note)
    ]
    name = metric.replace("_", " ")
    levels = [("original", unit * original)] if original is not None else []
    about = f"{name} against kilobytes of the file"
    y, within = f"{name}, %" if share else name, _worth_seeing(metric, original)
    if metric == "divergence":  # of the original it is 0, and files differ by powers
        return Chart("kilobytes", y, about, series, logarithmic=True)
    return Chart("kilobytes", y, about, series, levels, within=within)


def _worth_seeing(metric: str, original: float | None) -> tuple[float, float]:
    """The range of quality that a picture shows: what is far worse than the original would flatten all else."""
    if original is None:
        return -math.inf, math.inf
    return (100 * (original - _FAR), math.inf) if metric in SHARES else (-math.inf, _TIMES * original)


def series_of(points: Sequence[Point], x: str, y: str, note: Callable[[Point], str]) -> list[Series]:
    """The points by series, those with both numbers, in order of x."""
    named: dict[str, list[Point]] = {}
    for point in points:
        if getattr(point, x) is not None and getattr(point, y) is not None:
            named.setdefault(point.series, []).append(point)
    found = []
    for name, own in named.items():
        own.sort(key=lambda point: float(getattr(point, x)))
        places = [(float(getattr(p, x)), float(getattr(p, y))) for p in own]
        found.append(Series(name, places, notes=[note(p) for p in own]))
    return found


def both(chart: Chart) -> Markup:
    """A chart for wide and for narrow screens, under its legend and the name of the axis at the left."""
    name = element("p", chart.y, class_="axis-name")
    return joined(chart.legend(), name, chart.drawn(1040, 420, "wide"), chart.drawn(360, 320, "narrow"))


def _some(bound: Sequence[tuple[float, float]]) -> list[Point]:
    return [Point("rate-distortion bound", rate=rate, nats=nats) for rate, nats in bound[::4]]
