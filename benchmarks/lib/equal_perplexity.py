"""Our files of SmolLM2-135M and llama.cpp's side by side: what each takes for the same perplexity.

Read from the results of two benchmarks, `language_model.py` and `llama_cpp.py`, whenever a page is written.
"""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.common import Table, claim, claims_table
from lib.picture import Chart, Line, draw

BLOCKS = 30  # of the whole network
OURS = ("waterfill", "waterfill by blocks")
AS_IT_IS = "as it is"
COLORS = {OURS[0]: "#2a9d4b", OURS[1]: "#0b6bcb", AS_IT_IS: "#c4501b", "": "#8a5bb5"}
Row = dict[str, Any]
Point = tuple[float, float]


def rows_of(results: Path, name: str, table: str) -> list[Row]:
    """The rows of a table by the names of its columns, of the whole results or else of the partial ones."""
    for path in (results / f"{name}.json", results / f"{name}.partial.json"):
        if path.is_file():
            found = json.loads(path.read_text("utf-8"))["tables"].get(table)
            if found and found["rows"]:
                return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
    return []


def ours(results: Path) -> list[Row]:
    """Of the whole network what is compressed with inputs, the largest file first; of two tables the last counts."""
    rows = [row for table in ("methods", "rates") for row in rows_of(results, "language_model", table)]
    found = {(row["method"], row["bits"]): row for row in rows if row["blocks"] == BLOCKS and row["method"] in OURS}
    return sorted(found.values(), key=lambda row: -row["bytes"])


def theirs(results: Path) -> list[Row]:
    """llama.cpp's files."""
    return rows_of(results, "llama_cpp", "formats")


def frontier(points: list[Point]) -> list[Point]:
    """Of files (bytes, perplexity) those that no other one is both smaller and better than; the smallest first."""
    best, kept = math.inf, []
    for size, perplexity in sorted(points):
        if perplexity < best:
            best = perplexity
            kept.append((size, perplexity))
    return kept


def bytes_at(points: list[Point], perplexity: float) -> float | None:
    """Bytes for a perplexity, its logarithm linear between the files of the frontier; None beyond its ends."""
    for (small, high), (large, low) in itertools.pairwise(frontier(points)):
        if low <= perplexity <= high:
            share = (math.log(high) - math.log(perplexity)) / (math.log(high) - math.log(low))
            return small + share * (large - small)
    return None


def both(results: Path) -> Table:
    """Every file of either, the largest first."""
    columns = {"made by": "", "how": "", "bytes": ",d", "perplexity": ".2f", "divergence": ".4f"}
    rows = [["**waterfill**", f"{row['bits']:g} bits, {how(row)}", *figures(row)] for row in ours(results)]
    rows += [["llama.cpp", label(row), *figures(row)] for row in theirs(results)]
    return Table("SmolLM2-135M, files of the same weights", columns, sorted(rows, key=lambda row: -row[2]))


def how(row: Row) -> str:
    """Which of ours it is."""
    return "by blocks" if row["method"] == OURS[1] else "as a whole"


def label(row: Row) -> str:
    """A file of llama.cpp in a few words."""
    embedding = f", embedding {row['embedding']}" if row["embedding"] else ""
    return f"{row['format']}{embedding}" + ("" if row["rows"] == AS_IT_IS else f", {row['rows']}")


def figures(row: Row) -> list[Any]:
    """What both tables have."""
    return [row["bytes"], row["perplexity"], row["divergence"]]


def equal(results: Path) -> Table:
    """For each of ours the bytes that llama.cpp takes for its perplexity, as it is and with rows laid together too."""
    columns = {"waterfill": "", "bytes": ",d", "perplexity": ".2f", "llama.cpp as it is: bytes": ",.0f"}
    columns |= {"times ours": ".2f", "with rows as one: bytes": ",.0f", "of those times ours": ".2f"}
    runnable = points(theirs(results), AS_IT_IS)
    every = points(theirs(results))
    rows = []
    for row in ours(results):
        found = [bytes_at(some, row["perplexity"]) for some in (runnable, every)]
        pairs = [(size, size and size / row["bytes"]) for size in found]
        rows.append([f"{row['bits']:g} bits, {how(row)}", row["bytes"], row["perplexity"], *itertools.chain(*pairs)])
    return Table("Bytes for the same perplexity", columns, rows)


def points(rows: list[Row], laid: str | None = None) -> list[Point]:
    """(bytes, perplexity) of files, of those with rows laid so or of all."""
    return [(row["bytes"], row["perplexity"]) for row in rows if laid is None or row["rows"] == laid]


def claims(results: Path) -> Table:
    """Our bytes beside the best that any file of llama.cpp does, run there or not."""
    every, rows = points(theirs(results)), []
    for row in ours(results):
        size = bytes_at(every, row["perplexity"])
        if size is not None:
            text = f"SmolLM2-135M at {row['bits']:g} bits, {how(row)}: bytes, of llama.cpp's at equal perplexity"
            rows.append(claim(text, row["bytes"] / size, 1.0, ".2f", at_most=True))
    return claims_table(rows)


TABLES: dict[str, Callable[[Path], Table]] = {"both": both, "equal": equal, "claims": claims}
"""By the name in a mark of `report.py` what is written there."""


def picture(results: Path) -> str:
    """Perplexity, in powers, by megabytes of the file."""
    lines = []
    for method in OURS:
        own = [row for row in ours(results) if row["method"] == method]
        lines.append(Line(f"waterfill, {how({'method': method})}", COLORS[method], _places(points(own))))
    own, every = points(theirs(results), AS_IT_IS), points(theirs(results))
    lines.append(Line("llama.cpp as it is", COLORS[AS_IT_IS], _places(frontier(own))))
    lines.append(Line("llama.cpp, 4 rows as one", COLORS[""], _places(frontier([p for p in every if p not in own]))))
    x_ticks = [(float(size), f"{size}") for size in range(20, 151, 10)]
    y_ticks = [(math.log(value), f"{value}") for value in (25, 30, 40, 60, 100, 200)]
    title = "SmolLM2-135M: perplexity by size of the weights, MB"
    return draw([Chart(title, [line for line in lines if line.points], x_ticks, y_ticks)])


def _places(found: list[Point]) -> list[Point]:
    return [(size / 1e6, math.log(perplexity)) for size, perplexity in sorted(found)]
