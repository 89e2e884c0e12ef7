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
LIBRARY = [path for path in PYTHON if CHECKOUT / "src" in path.parents]
NATIVE = sorted(path for pattern in ("*.cpp", "*.h") for path in (CHECKOUT / "native").rglob(pattern))


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


FACTORIES = {
    "arange",
    "as_tensor",
    "asarray",
    "empty",
    "empty_strided",
    "eye",
    "full",
    "linspace",
    "logspace",
    "normal",
}
FACTORIES |= {"ones", "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros"}


def nameless_factories(source: str) -> Iterator[str]:
    """Calls that make a tensor of torch's default dtype or on its default device: they are global state."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, given = node.func.attr, {word.arg for word in node.keywords}
            wanted = {"dtype", "device"} if name in FACTORIES else set()
            if name == "Generator":
                wanted = set() if node.args else {"device"}
            if not wanted <= given and ast.unparse(node.func) == f"torch.{name}":
                yield f"line {node.lineno}: {ast.unparse(node)}"


def test_what_names_no_dtype_or_device_is_found() -> None:
    source = "torch.ones(3)\ntorch.ones(3, dtype=d)\ntorch.ones(3, dtype=d, device=e)\ntorch.Generator()\nnp.ones(3)\n"
    assert [found.split(":")[0] for found in nameless_factories(source)] == ["line 1", "line 2", "line 4"]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_every_tensor_names_its_dtype_and_device(path: Path) -> None:
    assert not list(nameless_factories(path.read_text("utf-8")))


@pytest.mark.parametrize("path", PYTHON + NATIVE, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_files_have_at_most_300_lines_of_at_most_120_characters(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= 300
    assert max(map(len, lines), default=0) <= 120
