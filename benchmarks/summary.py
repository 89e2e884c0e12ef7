"""Writes what README.md and docs/why.md show of the results: tables between marks, and the picture.

The mark `<!-- summary -->` of README.md is followed by a line for every network; marks of `report.py` work in both
documents. The picture is docs/resnet20.svg. Run it after the other benchmarks; a test compares documents and results.

    python benchmarks/summary.py
"""

import json
import re
from pathlib import Path
from typing import Any

import report
from common import CHECKOUT, RESULTS, Table
from picture import Line, draw

README = CHECKOUT / "README.md"
WHY = CHECKOUT / "docs" / "why.md"
PICTURE = CHECKOUT / "docs" / "resnet20.svg"
REGION = re.compile(r"(<!-- summary -->\n).*?(<!-- end -->)", re.DOTALL)
AUTOMATIC = "Quantize()"
WIDTHS = (4, 3, 2)

Run = dict[str, Any]


def main() -> None:
    for path in (README, WHY):
        path.write_text(rendered(path.read_text("utf-8"), RESULTS), encoding="utf-8")
    PICTURE.write_text(picture(runs(RESULTS)), encoding="utf-8")
    print("written:", ", ".join(str(path.relative_to(CHECKOUT)) for path in (README, WHY, PICTURE)))


def rendered(document: str, results: Path) -> str:
    """The document with every marked region made anew."""
    table = comparison(runs(results)).markdown()
    return report.render(REGION.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", document), results)


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
    columns |= {f"rounded to {width} → ours": "" for width in WIDTHS}
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
    return draw(title, lines, level)


if __name__ == "__main__":
    main()
