"""Writes what README.md and docs/decisions.md show of the results: tables between marks, and the picture.

The mark `<!-- summary -->` of README.md is followed by a line for every network; marks of `report.py` work in both
documents. The pictures are docs/resnet20.svg and those of docs/results. Run it after the other benchmarks; a
test compares documents and results.

    python benchmarks/summary.py
"""

import json
import re
from pathlib import Path
from typing import Any

import combinations
import report
from lib import equal_perplexity
from lib.common import CHECKOUT, RESULTS, Table
from lib.picture import Chart, Line, draw

README = CHECKOUT / "README.md"
DECISIONS = CHECKOUT / "docs" / "decisions.md"
PICTURE = CHECKOUT / "docs" / "resnet20.svg"
REGION = re.compile(r"(<!-- summary -->\n).*?(<!-- end -->)", re.DOTALL)
SAME_BYTES = re.compile(r"(<!-- same bytes -->\n).*?(<!-- end -->)", re.DOTALL)
BITS = 2.0
"""Bits per weight of the whole file in the table of the same bytes."""
AUTOMATIC = "Quantize()"
WIDTHS = (4, 3, 2)
SIZES, ACCURACIES = range(60, 241, 30), range(70, 96, 5)
"""Ticks of the picture."""

Run = dict[str, Any]


def main() -> None:
    for path in (README, DECISIONS):
        path.write_text(rendered(path.read_text("utf-8"), RESULTS), encoding="utf-8")
    for path, drawn in pictures(RESULTS).items():
        path.write_text(drawn, encoding="utf-8")
    print("written: README.md, docs/decisions.md and the pictures")


def pictures(results: Path) -> dict[Path, str]:
    """Every picture, of those whose benchmark was run."""
    drawn = {PICTURE: picture(runs(results))}
    files = report.files_of(results, "combinations")
    if files:
        rows = json.loads(files[0].read_text("utf-8"))["tables"]["runs"]["rows"]
        drawn[combinations.PICTURE] = combinations.picture(rows)
    if equal_perplexity.theirs(results):
        drawn[report.PAGES / "llama_cpp.svg"] = equal_perplexity.picture(results)
    return drawn


def rendered(document: str, results: Path) -> str:
    """The document with every marked region made anew."""
    table = comparison(runs(results)).markdown()
    same = same_bytes(results).markdown()
    document = SAME_BYTES.sub(lambda found: f"{found[1]}\n{same}\n\n{found[2]}", document)
    return report.render(REGION.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", document), results)


def same_bytes(results: Path) -> Table:
    """Quality with inputs at `BITS`, beside rounding and GPTQ in no fewer bytes, and the seconds that ours took."""
    columns = {"network": "", "": "", "float32": ".4g", "RTN g128": ".4g", "GPTQ g128": ".4g"}
    columns |= {"**waterfill**": "", "bytes": ",d", "times smaller": ".1f", "seconds": ".0f"}
    found = json.loads((results / "post_training.json").read_text("utf-8"))["tables"]
    original = {row[0]: row[4] for row in found["runs"]["rows"] if row[1] == "float32"}
    named = [dict(zip(found["quality"]["columns"], row, strict=True)) for row in found["quality"]["rows"]]
    rows = [
        [
            *(run[key] for key in ("network", "metric", "float32", "rounding g128: quality", "GPTQ g128: quality")),
            f"**{run['ours: quality']:.4g}**",
            run["our bytes"],
            original[run["network"]] / run["our bytes"],
            run["our seconds"],
        ]
        for run in named
        if run["bits"] == BITS and run["network"] in original
    ]
    return Table(f"Quality in the same bytes, {BITS:g} bits per weight of the whole file", columns, rows)


def runs(results: Path) -> list[Run]:
    """The measurements of `data_free.py`: those of the full run, or else of the last partial one."""
    for name in ("data_free.json", "data_free.partial.json"):
        if (results / name).is_file():
            table = json.loads((results / name).read_text("utf-8"))["tables"]["runs"]
            return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    return []


def comparison(found: list[Run]) -> Table:
    """A row for every network that was measured: untouched, then at the bytes of plain rounding to 4, 3 and 2 bits."""
    columns = {"network": "", "": "", "float32": ".4g"}
    columns |= {f"RTN g64, {width} bits → waterfill": "" for width in WIDTHS}
    originals = [run for run in found if run["recipe"] == "float32"]
    pairs = {run["network"]: [_pair(found, run["network"], width) for width in WIDTHS] for run in originals}
    rows = [
        [run["network"], run["metric"], run["quality"], *pairs[run["network"]]]
        for run in originals
        if any(pair != "-" for pair in pairs[run["network"]])
    ]
    subset = ", on a part of the test data" if any(run["quick"] for run in found) else ""
    return Table(f"Quality at the bytes of plain rounding in groups of 64{subset}", columns, rows)


def _pair(found: list[Run], network: str, width: int) -> str:
    """Quality of plain rounding, and ours in no more bytes."""
    at = {r["recipe"]: r for r in found if r["network"] == network and r["width"] == width and not r["failed"]}
    if not {"", AUTOMATIC} <= set(at):
        return "-"
    return f"{at['']['quality']:.4g} → **{at[AUTOMATIC]['quality']:.4g}**"


def picture(found: list[Run]) -> str:
    """Accuracy of ResNet-20 against the size of the file, as SVG."""
    own = [run for run in found if run["network"] == "ResNet-20" and not run["failed"]]
    original = [run for run in own if run["recipe"] == "float32"]
    lines = [
        Line(name, color, sorted((run["size"] / 1000, run["quality"]) for run in own if run["recipe"] == recipe))
        for name, color, recipe in (
            ("waterfill, no data, no training", "#0b6bcb", AUTOMATIC),
            ("round to nearest, groups of 64", "#c4501b", ""),
        )
    ]
    images = "1,000" if any(run["quick"] for run in own) else "10,000"
    title = f"ResNet-20: accuracy on {images} CIFAR-10 test images, %, by size of the file, kB"
    level = [(f"float32, {run['size'] / 1000:,.0f} kB", run["quality"]) for run in original]
    x_ticks, y_ticks = ([(float(tick), f"{tick}") for tick in ticks] for ticks in (SIZES, ACCURACIES))
    return draw([Chart(title, lines, x_ticks, y_ticks, level)])


if __name__ == "__main__":
    main()
