"""Recipes: the text of a spec, such as `Quantize() + Prune(keep=0.03) | LowRank(rank=8, factors=Codebook(levels=16))`.

The text is parsed, never evaluated: names of known specs, named arguments that are literals or specs, `+`, `|` and
parentheses. `+` binds tighter than `|`, as in Python.
"""

import ast
import difflib
import inspect

import waterfill.parts  # noqa: F401 - registers the kinds that a recipe may name
from waterfill.errors import BadRecipe
from waterfill.part import Choice, Spec, SumSpec

_LONGEST = 4096
_COMBINING = (SumSpec, Choice)

DEFAULT_RECIPE = "Quantize()"
"""The recipe where none is given and only the weights are known."""


def kinds() -> dict[str, type[Spec]]:
    """The specs that recipes may name: every concrete subclass of `Spec` that has been defined, sorted by name."""
    classes = list(Spec.__subclasses__())
    for kind in classes:  # which grows meanwhile
        classes += kind.__subclasses__()
    named = {kind.__name__: kind for kind in classes if not inspect.isabstract(kind) and kind not in _COMBINING}
    return {name: named[name] for name in sorted(named)}


def parse(text: str) -> Spec:
    """The spec that a text describes; `parse(repr(spec)) == spec`.

    Args:
        text: names of specs with arguments by name, joined by `+` (sums) and `|` (choices); `+` binds tighter.

    Raises:
        BadRecipe: a text that is no recipe, with the position of the error, or arguments that a spec refuses.

    Example:
        >>> spec = waterfill.parse("Quantize() + Prune(keep=0.03) | LowRank(rank=8)")
    """
    if len(text) > _LONGEST:
        raise BadRecipe(f"recipe of {len(text)} characters; at most {_LONGEST} are read")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        at = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        raise BadRecipe(
            f"recipe {text!r} cannot be read{at}; write for example Quantize() + Prune(keep=0.03)"
        ) from error
    return _spec(tree.body)


def as_spec(spec: "Spec | str") -> Spec:
    """A spec, from itself or from its text. Raises BadRecipe."""
    return parse(spec) if isinstance(spec, str) else spec


def _spec(node: ast.expr) -> Spec:
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _spec(left) + _spec(right)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _spec(left) | _spec(right)
        case ast.Call(func=ast.Name(id=name)):
            return _call(node, name)
        case ast.Name(id=name):
            raise _error(node, f"{name} needs parentheses: {name}()")
    raise _error(node, f"{ast.unparse(node)!r} is not a spec; wanted Name(...), joined by + or |")


def _call(node: ast.Call, name: str) -> Spec:
    known = kinds()
    if name not in known:
        raise _error(node, f"there is no {name!r}; {_close(name, list(known))}")
    if node.args:
        raise _error(node.args[0], f"arguments of {name} are given by name; {_allowed(known[name])}")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg not in _arguments(known[name]):
            raise _error(keyword.value, f"{name} has no argument {keyword.arg!r}; {_allowed(known[name])}")
        arguments[keyword.arg] = _value(keyword.value)
    try:
        return known[name](**arguments)
    except (BadRecipe, TypeError, ValueError) as error:
        raise _error(node, str(error)) from error


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.Call | ast.BinOp | ast.Name):
        return _spec(node)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise _error(node, f"{ast.unparse(node)!r} is neither a literal nor a spec") from error


def _arguments(kind: type[Spec]) -> list[str]:
    return list(inspect.signature(kind).parameters)


def _allowed(kind: type[Spec]) -> str:
    names = _arguments(kind)
    return f"it takes {', '.join(names)}" if names else "it takes none"


def _close(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"


def _error(node: ast.expr, why: str) -> BadRecipe:
    return BadRecipe(f"recipe, character {node.col_offset + 1}: {why}")
