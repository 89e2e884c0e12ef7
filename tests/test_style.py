"""The limits of docs/style.md that no linter knows: functions of at most 50 lines, files of at most 300."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.places import CHECKOUT

GENERATED = {
    CHECKOUT / "src/waterfill/coding/density_tables.py"
}  # tables of numbers, printed by tools/freeze_densities.py
FOLDERS = ("src", "tests", "tools", "benchmarks", "examples")
PYTHON = sorted(path for folder in FOLDERS for path in (CHECKOUT / folder).rglob("*.py") if path not in GENERATED)
NATIVE = sorted(path for pattern in ("*.cpp", "*.h") for path in (CHECKOUT / "native").glob(pattern))


def function_lengths(source: str) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function, its docstring not counted."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) is not None else None
            documented = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            yield node.name, node.end_lineno - node.lineno + 1 - documented


def test_a_docstring_is_not_counted() -> None:
    source = 'def f():\n    """One.\n\n    Two.\n    """\n    return 1\n\nclass C:\n    def g(self): pass\n'
    assert dict(function_lengths(source)) == {"f": 2, "g": 1}


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_functions_have_at_most_50_lines(path: Path) -> None:
    long = {name: lines for name, lines in function_lengths(path.read_text("utf-8")) if lines > 50}
    assert not long, f"split {long}"


@pytest.mark.parametrize("path", PYTHON + NATIVE, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_files_have_at_most_300_lines_of_at_most_120_characters(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= 300
    assert max(map(len, lines), default=0) <= 120
