"""What `compare` returns: a row for each file, a table of them, and a plot."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from waterfill.errors import BadInput
from waterfill.report.comparison.kept import read
from waterfill.report.drawing.chart import Chart, Series, standalone
from waterfill.report.markup import Markup, element, joined
from waterfill.report.page.curves import SHARES, quality_chart, series_of
from waterfill.report.page.facts import Point
from waterfill.report.page.numbers import quality_text, small
from waterfill.report.page.tables import Cell, Heading, table
from waterfill.report.text import Column, screen, seconds_text
from waterfill.report.text import table as plain_table

KIND = "compare"


@dataclass(frozen=True)
class Row:
    """One file. series: its recipe, or the name of what made it. asked: bits per weight that were asked for. bytes,
    bits: of the whole file, and per weight. rate: bits per weight without norms and biases, which `bound` is for. nats:
    the predicted cost of all errors. quality: on the held-out inputs, its standard error in `doubt`. None: not known.
    remark: why there is no such file, which then has no
    bytes, or no quality."""

    series: str
    asked: float | None
    bytes: int
    bits: float
    rate: float | None = None
    nats: float | None = None
    bound: float | None = None
    quality: float | None = None
    doubt: float | None = None
    seconds: float = 0.0
    remark: str = ""

    def point(self) -> Point:
        """The row as a point of a chart."""
        return Point(self.series, self.bytes, self.bits, self.rate, self.nats, self.quality)


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns.

    Attributes:
        rows: one for each file.
        metric: what quality is, or empty.
        original: the original's quality, or None.
        better: 1 if more of the quality is better, -1 if less.
        measured: whether nats come from inputs, not from an assumption.
    """

    rows: Sequence[Row]
    metric: str = ""
    original: float | None = None
    better: int = 1
    measured: bool = False

    def as_json(self) -> dict[str, Any]:
        """For JSON: what is None is left out of the rows."""
        rows = [{key: value for key, value in asdict(row).items() if value is not None} for row in self.rows]
        costs = "measured" if self.measured else "assumed"
        return {
            "metric": self.metric,
            "original": self.original,
            "better": self.better,
            "costs": costs,
            "rows": rows,
        }

    @classmethod
    def load(cls, path: "str | Path") -> "Comparison":
        """The comparison in a file that `compare` wrote. Raises BadInput."""
        return cls.of(read(path, KIND), f"{path}")

    @classmethod
    def of(cls, held: dict[str, Any], where: str) -> "Comparison":
        """From the content of a file. Raises BadInput."""
        more, names = held["more"], {field.name for field in fields(Row)}
        known = [{key: value for key, value in row.items() if key in names} for row in held["rows"].values()]
        numbers = [
            value
            for row in known
            for key, value in row.items()
            if key not in ("series", "remark") and value is not None
        ]
        if not all(isinstance(value, int | float) for value in [*numbers, more.get("original") or 0]):
            raise BadInput(f"{where} holds rows that are no numbers; it was not written by waterfill")
        try:
            rows = [Row(**({"asked": None} | row | {"series": f"{row['series']}"})) for row in known]
        except (TypeError, KeyError) as error:
            raise BadInput(f"{where} lacks numbers of its rows: {error}") from error
        better, measured = -1 if more.get("better") == -1 else 1, more.get("costs") == "measured"
        return cls(rows, f"{more.get('metric', '')}", more.get("original"), better, measured)

    def text(self) -> str:
        """The table in plain text."""
        columns = [Column("recipe", text=True, least=24), *(Column(title) for title in _titles(self.metric))]
        lines = [plain_table(columns, [[row.series, *self._cells(row)] for row in self.rows], screen())]
        lines += [f"{row.series}: {row.remark}" for row in self.rows if row.remark]
        if self.original is not None:
            lines.append(f"{self._metric} of the original: {quality_text(self.original, self.metric in SHARES)}")
        return "\n".join(lines)

    def chart(self) -> Chart:
        """Quality against bytes; without it what errors cost against bits per weight. Raises BadInput for neither."""
        points = [row.point() for row in self.rows if row.bytes]
        if any(point.quality is not None for point in points):
            return quality_chart(points, self.metric, self.original)
        series = series_of(points, "rate", "nats", lambda p: f"{p.rate:.3f} bits per weight, {small(p.nats)} nats")
        known = sorted((row.bound, row.nats) for row in self.rows if row.bound and row.nats)
        bound = [Series("rate-distortion bound", known, bound=True)] if known else []
        if not series:
            raise BadInput("there is nothing to draw: no row has a quality or the cost of its errors")
        about = "Cost of the errors in nats against bits per weight"
        return Chart("bits per weight, norms and biases apart", "nats", about, [*bound, *series], logarithmic=True)

    def svg(self) -> str:
        """The plot, a file of its own."""
        folder = resources.files("waterfill.report").joinpath("drawing")
        style = "".join(folder.joinpath(name).read_text("utf-8") for name in ("palette.css", "chart.css"))
        return standalone(self.chart(), style)

    def _repr_html_(self) -> str:
        """The table and the plot, for a notebook."""
        headings = [Heading("recipe", text=True), *(Heading(title) for title in _titles(self.metric))]
        cells = [[Cell(row.series), *(Cell(text) for text in self._cells(row))] for row in self.rows]
        return str(joined(element("div", table(headings, cells, "Files of one network")), Markup(self.svg())))

    @property
    def _metric(self) -> str:
        return self.metric.replace("_", " ")

    def _cells(self, row: Row) -> list[str]:
        share = self.metric in SHARES
        quality = "" if row.quality is None else quality_text(row.quality, share)
        if row.doubt and quality:
            quality += f" ± {100 * row.doubt:.2f}" if share else f" ± {small(row.doubt, 2)}"
        above = "" if row.bound is None or row.rate is None else f"{row.rate - row.bound:+.3f}"
        asked = "" if row.asked is None else f"{row.asked:g}"
        seconds = seconds_text(row.seconds) if row.seconds else ""
        size, bits = (f"{row.bytes}", f"{row.bits:.3f}") if row.bytes else ("", "")
        return [asked, size, bits, small(row.nats), above, quality, seconds]


def _titles(metric: str) -> list[str]:
    return ["asked", "bytes", "bits/weight", "nats", "above the bound", metric.replace("_", " ") or "quality", "took"]
