"""What every benchmark shares: the machine it runs on, tables for the eye and for JSON, the folder of real networks.

A run with its default options writes `results/NAME.json`; any other run is partial and writes
`results/NAME.partial.json`, so that a quick look never replaces the figures that the documentation shows.
"""

import datetime
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

CHECKOUT = Path(__file__).resolve().parents[2]
RESULTS = CHECKOUT / "benchmarks" / "results"


@dataclass(frozen=True)
class Table:
    """columns: heading -> format of its cells, such as `.2f`. rows: a value for every column, or None."""

    title: str
    columns: dict[str, str]
    rows: list[list[Any]]

    def cells(self) -> list[list[str]]:
        """Every value as text."""
        return [[_text(v, form) for v, form in zip(row, self.columns.values(), strict=True)] for row in self.rows]

    def text(self) -> str:
        """For a terminal."""
        lines = [list(self.columns), *self.cells()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        numeric = self._numeric()
        aligned = (
            (f"{cell:>{w}}" if n else f"{cell:<{w}}" for cell, w, n in zip(line, widths, numeric, strict=True))
            for line in lines
        )
        return "\n".join([self.title, *("  ".join(line).rstrip() for line in aligned)])

    def markdown(self) -> str:
        """For a document."""
        rule = ["---:" if n else "---" for n in self._numeric()]
        lines = [list(self.columns), rule, *self.cells()]
        return "\n".join([f"**{self.title}**", "", *("| " + " | ".join(line) + " |" for line in lines)])

    def _numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        return [any(type(v) in (int, float) for v in values) for values in zip(*self.rows, strict=True)] or [
            False for _ in self.columns
        ]


def timed(action: Callable[[], Any], runs: int = 3) -> tuple[Any, float]:
    """The result and the seconds of the fastest run."""
    best = float("inf")
    for _ in range(runs):
        begin = time.perf_counter()
        result = action()
        best = min(best, time.perf_counter() - begin)
    return result, best


def _text(value: Any, form: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return value if isinstance(value, str) else format(value, form)


def claim(what: str, found: float, wanted: float, form: str, *, at_most: bool = False) -> list[Any]:
    """A row of a table of claims: the figure found, the bar, and whether it is met."""
    found = round(found, 9)  # 93.39 - 93.19 is a little more than 0.2
    met = found <= wanted if at_most else found >= wanted
    return [what, format(found, form), ("at most " if at_most else "at least ") + format(wanted, form), bool(met)]


def claims_table(rows: Iterable[list[Any]]) -> Table:
    """The table of rows that `claim` made."""
    return Table("Claims", {"claim": "", "found": "", "wanted": "", "met": ""}, list(rows))


def machine() -> dict[str, Any]:
    """What the figures were measured on: processor, instruction sets, versions, date, commit."""
    import torch

    from waterfill.coding import rans

    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instruction sets": ", ".join(rans.instruction_sets()),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, NumPy {np.__version__}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit of the checkout, with a plus sign where files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(CHECKOUT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git(
            "status", "--porcelain", "--", "src", "native", "benchmarks/*.py", "benchmarks/lib", "benchmarks/opponents"
        )
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def finish(
    name: str, tables: dict[str, Table], options: dict[str, Any], *, partial: bool, shown: Iterable[str]
) -> None:
    """Print the tables named in `shown`, where there are such, and write all of them to the results folder."""
    shown = [key for key in shown if key in tables]
    for key in shown:
        print(f"\n{tables[key].text()}")
    result = {"machine": machine(), "options": options, "tables": {key: asdict(t) for key, t in tables.items()}}
    RESULTS.mkdir(exist_ok=True)
    partial_path = RESULTS / f"{name}.partial.json"
    path = partial_path if partial else RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if not partial:
        partial_path.unlink(missing_ok=True)
    if shown:
        print(f"\nwritten: {path.relative_to(CHECKOUT)}")


def measured_before(name: str, table: str) -> list[list[Any]]:
    """The rows of a table as far as they were measured: of the partial results, else of the whole ones; else none."""
    for path in (RESULTS / f"{name}.partial.json", RESULTS / f"{name}.json"):
        if path.is_file():
            rows: list[list[Any]] = json.loads(path.read_text("utf-8"))["tables"].get(table, {"rows": []})["rows"]
            return rows
    return []


def data_folder() -> Path:
    """The folder of trained networks and data: `WATERFILL_DATA`, else ../shared/data beside the checkout.

    Ends the program, without an error, where there is none: the figures cannot be measured there.
    """
    folder = Path(os.environ.get("WATERFILL_DATA", CHECKOUT.parent / "shared" / "data"))
    if not (folder / "refmodels.py").is_file():
        print(f"skipped: needs the folder of trained networks and data, which is not at {folder}: set WATERFILL_DATA")
        sys.exit(0)
    return folder


def data_module(folder: Path, name: str) -> ModuleType:
    """A module that lies in the data folder; registered under its name, since they import each other."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        if spec is None or spec.loader is None:
            raise ImportError(f"{folder / name}.py cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]
