"""The limits of docs/style.md that no linter knows: functions of at most 50 lines, files of at most 300."""

import ast
from collections.abc import Iterator

import pytest
from tests.support.places import CHECKOUT

GENERATED = {
    CHECKOUT / "src/waterfill/coding/density_tables.py"
}  # tables of numbers, printed by tools/freeze_densities.py
FOLDERS = ("src", "tests", "tools", "benchmarks", "examples")
PATTERNS = {"native": ("*.cpp", "*.h")}  # of the files of a folder, where they are not Python's


def sources(folder: str) -> dict[str, str]:
    """The text of every file of a folder by its path in the checkout."""
    patterns = PATTERNS.get(folder, ("*.py",))
    paths = [path for pattern in patterns for path in (CHECKOUT / folder).rglob(pattern) if path not in GENERATED]
    assert paths
    return {path.relative_to(CHECKOUT).as_posix(): path.read_text("utf-8") for path in sorted(paths)}


def statements(node: ast.AST) -> Iterator[ast.stmt]:
    """All statements within a node: no expressions, of which there are far more."""
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        for inner in getattr(node, block, ()):
            yield inner
            yield from statements(inner)


def function_lengths(source: str) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function, its docstring not counted."""
    for node in statements(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) is not None else None
            documented = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            yield node.name, node.end_lineno - node.lineno + 1 - documented


def test_a_docstring_is_not_counted() -> None:
    source = 'def f():\n    """One.\n\n    Two.\n    """\n    return 1\n\nclass C:\n    def g(self): pass\n'
    assert dict(function_lengths(source)) == {"f": 2, "g": 1}


def test_a_function_is_found_wherever_it_stands() -> None:
    blocks = ["if x:", "for x in y:", "with x:", "match x:\n case 1:", "class C:", "def g():"]
    blocks += ["if x: pass\nelse:", "try: pass\nexcept E:", "try: pass\nfinally:", "while x: pass\nelse:"]
    for block in blocks:
        assert "f" in dict(function_lengths(f"{block}\n  async def f(): pass\n")), block


@pytest.mark.parametrize("folder", FOLDERS)
def test_functions_have_at_most_50_lines(folder: str) -> None:
    found = {path: list(function_lengths(source)) for path, source in sources(folder).items()}
    long = [(path, name, lines) for path, functions in found.items() for name, lines in functions if lines > 50]
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


def test_every_tensor_names_its_dtype_and_device() -> None:
    found = {path: list(nameless_factories(source)) for path, source in sources("src").items()}
    assert not {path: calls for path, calls in found.items() if calls}


@pytest.mark.parametrize("folder", [*FOLDERS, "native"])
def test_files_have_at_most_300_lines_of_at_most_120_characters(folder: str) -> None:
    found = {path: source.splitlines() for path, source in sources(folder).items()}
    long = {path: len(lines) for path, lines in found.items() if len(lines) > 300}
    wide = [(path, number) for path, lines in found.items() for number, line in enumerate(lines, 1) if len(line) > 120]
    assert not long and not wide, f"split {long}, break {wide}"
