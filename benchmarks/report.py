"""Writes the tables in the pages of `docs/results` from the results, between marks, so that the two cannot differ.

A mark `<!-- results: NAME TABLE -->` is followed by that table of `results/NAME.json`, or of the partial results where
it is not in there, up to `<!-- end -->`; TABLE `machine` is what it was measured on.
The mark `<!-- claims -->` is followed by the claims of all benchmarks. Tables of `llama_cpp` that hold our files too
are made of the results of two benchmarks (`lib/equal_perplexity.py`).

    python benchmarks/report.py [--check]
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from lib import equal_perplexity
from lib.common import CHECKOUT, RESULTS, Table

PAGES = CHECKOUT / "docs" / "results"
REGION = re.compile(r"(<!-- results: (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
CLAIMS = re.compile(r"(<!-- claims -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    pages = {path: path.read_text("utf-8") for path in sorted(PAGES.glob("*.md"))}
    new = {path: render(text, RESULTS) for path, text in pages.items()}
    if "--check" in sys.argv[1:]:
        differ = [path.name for path in pages if new[path] != pages[path]]
        sys.exit(f"{', '.join(differ)}: not what the results say; run python benchmarks/report.py" if differ else 0)
    for path, text in new.items():
        path.write_text(text, encoding="utf-8")
    print(f"written: {len(new)} pages in {PAGES.relative_to(CHECKOUT)}")


def render(document: str, results: Path) -> str:
    """The document with every marked region made anew."""
    document = CLAIMS.sub(lambda found: f"{found[1]}\n{claims(results).markdown()}\n\n{found[2]}", document)
    return REGION.sub(lambda found: found[1] + "\n" + region(results, found[2], found[3]) + "\n\n" + found[4], document)


def claims(results: Path) -> Table:
    """What every benchmark claims, and whether it is met."""
    rows = []
    for name in sorted({path.name.partition(".")[0] for path in results.glob("*.json")}):
        page = PAGES / f"{name}.md"
        link = f"[{name}]({page.name})" if page.is_file() else name
        known: dict[str, list[Any]] = {}  # of a claim that both make, the whole results count
        for path in reversed(files_of(results, name)):
            table = json.loads(path.read_text("utf-8")).get("tables", {}).get("claims", {"rows": []})
            known |= {row[0]: [link, *row] for row in table["rows"]}
        if name == "llama_cpp":
            known = {row[0]: [link, *row] for row in equal_perplexity.claims(results).rows}
        rows += known.values()
    return Table("All claims", {"benchmark": "", "claim": "", "found": "", "wanted": "", "met": ""}, rows)


def files_of(results: Path, name: str) -> list[Path]:
    """The results of a benchmark and, after them, the partial ones, as far as there are such."""
    return [path for path in (results / f"{name}.json", results / f"{name}.partial.json") if path.is_file()]


def region(results: Path, name: str, table: str) -> str:
    """What stands in one region."""
    files = [(path, json.loads(path.read_text("utf-8"))) for path in files_of(results, name)]
    if not files:
        return "Not measured yet."
    path, result = next((pair for pair in files if pair[1].get("tables", {}).get(table, {}).get("rows")), files[0])
    if table == "machine":
        partial = f" Partial run: {_facts(result.get('options', {}))}." if ".partial" in path.name else ""
        return f"Measured on: {_facts(result['machine'])}.{partial}"
    if name == "lossless":
        return lossless_table(result).markdown()
    if name == "llama_cpp" and table in equal_perplexity.TABLES:
        made = equal_perplexity.TABLES[table](results)
        return made.markdown() if made.rows else "Not measured yet."
    if not result["tables"].get(table, {}).get("rows"):
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
