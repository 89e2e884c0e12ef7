"""Writes the tables of `docs/results.md` from the results, between its marks, so that the two cannot differ.

A mark `<!-- results: NAME TABLE -->` is followed by that table of `results/NAME.json`, or of the partial results where
there are no others, up to `<!-- end -->`; TABLE `machine` is what it was measured on.

    python benchmarks/report.py [--check]
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from common import CHECKOUT, RESULTS, Table

DOCUMENT = CHECKOUT / "docs" / "results.md"
REGION = re.compile(r"(<!-- results: (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    old = DOCUMENT.read_text("utf-8")
    new = render(old, RESULTS)
    if "--check" in sys.argv[1:]:
        sys.exit(0 if new == old else f"{DOCUMENT.name} differs from the results: run python benchmarks/report.py")
    DOCUMENT.write_text(new, encoding="utf-8")
    print(f"written: {DOCUMENT.relative_to(CHECKOUT)}")


def render(document: str, results: Path) -> str:
    """The document with every marked region made anew."""
    return REGION.sub(lambda found: found[1] + "\n" + region(results, found[2], found[3]) + "\n\n" + found[4], document)


def region(results: Path, name: str, table: str) -> str:
    """What stands in one region."""
    paths = [path for path in (results / f"{name}.json", results / f"{name}.partial.json") if path.is_file()]
    if not paths:
        return "Not measured yet."
    result = json.loads(paths[0].read_text("utf-8"))
    if table == "machine":
        partial = f" Partial run: {_facts(result.get('options', {}))}." if ".partial" in paths[0].name else ""
        return f"Measured on: {_facts(result['machine'])}.{partial}"
    if name == "lossless":
        return lossless_table(result).markdown()
    if table not in result["tables"]:
        return "Not measured yet."
    return Table(**result["tables"][table]).markdown()


def _facts(values: dict[str, Any]) -> str:
    return "; ".join(f"{key} {value}" for key, value in values.items())


def lossless_table(result: dict[str, Any]) -> Table:
    """The rows of `lossless.py`."""
    columns = {"weights": "", "type": "", "coder": "", "ratio": ".3f", "encode, GB/s": ".3f", "decode, GB/s": ".3f"}
    rows = [
        [network, dtype, line["coder"], line["ratio"], line.get("encode"), line.get("decode")]
        for network, types in result["networks"].items()
        for dtype, lines in types.items()
        for line in lines
    ]
    return Table("Lossless: original bytes over compressed bytes, one thread", columns, rows)


if __name__ == "__main__":
    main()
