"""Which recipe each tensor takes: one for all, or by patterns of names, of which the first that matches counts.

A pattern is that of a shell, where `*` also reaches across dots, or after `re:` a regular expression, matched from the
start. It is compared with the name of a tensor and with that of the module which holds it, so that `lm_head` stands for
`lm_head.weight` and whatever else lies there.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from waterfill.errors import BadRecipe
from waterfill.part import Spec
from waterfill.recipe import DEFAULT_RECIPE, as_spec

Recipe = Spec | str | Mapping[str, Spec | str]
"""A spec or its text for all tensors; or specs by pattern of names, as a mapping or as `PATTERN: RECIPE; ...`."""
LOSSLESS = "lossless"
"""In place of a spec: the tensor is kept bit for bit."""
_EVERY = "*"
_EXPRESSION = "re:"
_BETWEEN, _AFTER_PATTERN = ";", ": "
_NAMED = 4  # names in an error


@dataclass(frozen=True)
class Assignment:
    """The recipe of each tensor, by its name.

    rules: patterns, and the spec of what they match, None where that is kept bit for bit; the first that matches
    counts. default: the spec of what none matches.
    """

    rules: tuple[tuple[str, Spec | None], ...]
    default: Spec

    @classmethod
    def of(
        cls,
        recipe: "Recipe | Assignment | None",
        ignore: Sequence[str] = (),
        default: "Spec | str" = DEFAULT_RECIPE,
    ) -> "Assignment":
        """From what a user gives; what `ignore` matches is kept bit for bit, whatever else matches it.

        Raises BadRecipe for a recipe or a pattern without meaning.
        """
        if isinstance(recipe, Assignment):
            return recipe
        if isinstance(ignore, str) or not isinstance(ignore, Iterable):
            raise BadRecipe(f"ignore={ignore!r} is no list of patterns; give a list: ignore=['lm_head']")
        given = _by_pattern(recipe)
        kept = tuple((pattern, None) for pattern in ignore)
        rules = kept + tuple((p, None if spec == LOSSLESS else as_spec(spec)) for p, spec in given.items())
        for pattern, _ in rules:
            _check(pattern)
        return cls(rules, as_spec(default))

    def mapped(self, change: Callable[[Spec], Spec]) -> "Assignment":
        """The same patterns with other specs, that of what none matches among them."""
        rules = tuple((pattern, None if spec is None else change(spec)) for pattern, spec in self.rules)
        every = () if any(pattern == _EVERY for pattern, _ in rules) else ((_EVERY, change(self.default)),)
        return Assignment((*rules, *every), change(self.default))

    @property
    def is_for_all(self) -> bool:
        """Whether all tensors take the same recipe."""
        return all(pattern == _EVERY for pattern, _ in self.rules)

    @property
    def text(self) -> str:
        """The recipe as text, from which `of` makes the same rules again; empty for the default alone."""
        said = [(pattern, LOSSLESS if spec is None else repr(spec)) for pattern, spec in self.rules]
        if self.is_for_all:
            return "".join(spec for _, spec in said[:1])
        return f"{_BETWEEN} ".join(f"{pattern}{_AFTER_PATTERN}{spec}" for pattern, spec in said)

    @property
    def fixed_rate(self) -> bool:
        """Whether every spec says by itself how large its parts are."""
        others = [] if any(pattern == _EVERY for pattern, _ in self.rules) else [self.default]
        return all(spec.fixed_rate for spec in (*(spec for _, spec in self.rules if spec is not None), *others))

    def by_name(self, names: Iterable[str], aliases: Mapping[str, str]) -> dict[str, Spec | None]:
        """The spec of each named tensor, None where it is kept bit for bit.

        aliases: further names of tied tensors, each with the one of `names` whose recipe it takes.
        Raises BadRecipe for a pattern that matches nothing, and for patterns that tell tied names apart.
        """
        names = list(names)
        for pattern, _ in self.rules:
            if pattern != _EVERY and not any(_matches(pattern, name) for name in (*names, *aliases)):
                raise BadRecipe(_unmatched(pattern, [*names, *aliases]))
        rules = {name: self._rule(name) for name in names}
        for alias, owner in aliases.items():
            pattern, spec = self._rule(alias)
            if pattern != _EVERY and spec != rules[owner][1]:
                raise BadRecipe(
                    f"{alias!r} and {owner!r} are one tensor, tied or of equal values, and take one recipe: pattern "
                    f"{pattern!r} gives the one {_words(spec)}, and {rules[owner][0]!r} gives the other "
                    f"{_words(rules[owner][1])}; let the same pattern match both names, or neither"
                )
        return {name: spec for name, (_, spec) in rules.items()}

    def _rule(self, name: str) -> tuple[str, Spec | None]:
        """The pattern that decides on a name, and its spec."""
        return next(((p, spec) for p, spec in self.rules if _matches(p, name)), (_EVERY, self.default))


def kept_names(specs: Mapping[str, Spec | None], aliases: Mapping[str, str]) -> frozenset[str]:
    """All names, those of tied tensors too, of what is kept bit for bit. specs: as `Assignment.by_name` gives them."""
    kept = {name for name, spec in specs.items() if spec is None}
    return frozenset(kept | {alias for alias, owner in aliases.items() if owner in kept})


def _by_pattern(recipe: "Recipe | None") -> Mapping[str, Spec | str]:
    """The specs by pattern. Raises BadRecipe."""
    if recipe is None:
        return {}
    if isinstance(recipe, Mapping):
        if not recipe:
            raise BadRecipe("a mapping of specs by names holds none; give at least one")
        return recipe
    if not isinstance(recipe, str) or _AFTER_PATTERN not in recipe:
        return {_EVERY: recipe}
    found: dict[str, Spec | str] = {}
    for piece in filter(None, map(str.strip, recipe.split(_BETWEEN))):
        pattern, _, spec = map(str.strip, piece.rpartition(_AFTER_PATTERN))
        if not pattern:
            raise BadRecipe(f"recipe {recipe!r}: {piece!r} names no pattern; write PATTERN: RECIPE; PATTERN: RECIPE")
        if pattern in found:
            raise BadRecipe(f"recipe {recipe!r}: the pattern {pattern!r} stands there twice; the first would count")
        found[pattern] = spec
    return found


def _check(pattern: str) -> None:
    """Raise BadRecipe for a pattern without meaning."""
    if not isinstance(pattern, str) or not pattern.strip() or pattern != pattern.strip():
        raise BadRecipe(
            f"{pattern!r} is no pattern of names; give text such as 'lm_head' or 're:.*mlp.*', without blanks around it"
        )
    if _BETWEEN in pattern or _AFTER_PATTERN in pattern:
        raise BadRecipe(f"pattern {pattern!r} holds {_BETWEEN!r} or {_AFTER_PATTERN!r}, which end one in a recipe")
    if pattern.startswith(_EXPRESSION):
        try:
            re.compile(pattern.removeprefix(_EXPRESSION))
        except re.error as error:
            raise BadRecipe(f"pattern {pattern!r} is no regular expression: {error}") from error


def _matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches the name of a tensor, or that of the module which holds it."""
    both = [one for one in (name, name.rpartition(".")[0]) if one]
    if pattern.startswith(_EXPRESSION):
        return any(re.match(pattern.removeprefix(_EXPRESSION), one) for one in both)
    return any(fnmatchcase(one, pattern) for one in both)


def _unmatched(pattern: str, names: Sequence[str]) -> str:
    """The error for a pattern that matches nothing."""
    if any(name.startswith(f"{pattern}.") for name in names):
        return f"the pattern {pattern!r} is a module that holds other modules alone; write '{pattern}.*' for all in it"
    core = pattern.removeprefix(_EXPRESSION).strip("^.*$?")
    near = difflib.get_close_matches(core, names, n=_NAMED, cutoff=0.3) or names[:_NAMED]
    said = ", ".join(map(repr, near)) or "none"
    return f"the pattern {pattern!r} matches no tensor; of the {len(names)} names some are {said}"


def _words(spec: Spec | None) -> str:
    return LOSSLESS if spec is None else repr(spec)
