"""Recipes by patterns of names: the first that matches counts, and whatever has no effect is said."""

import pytest

from waterfill.assignment import Assignment
from waterfill.errors import BadRecipe
from waterfill.parts import LowRank, Prune, Quantize

NAMES = ["embed.weight", *(f"layers.{i}.{part}.weight" for i in (1, 11) for part in ("attn.q_proj", "mlp.up"))]


def found(recipe: object, ignore: tuple[str, ...] = (), aliases: dict[str, str] | None = None) -> dict[str, object]:
    return Assignment.of(recipe, ignore).by_name(NAMES, aliases or {})


def test_the_first_pattern_that_matches_counts() -> None:
    specs = found({"*.mlp.*": "Prune(keep=0.5)", "re:layers\\.1\\.": LowRank(rank=2), "*": "Quantize(states=8)"})
    assert specs == {
        "embed.weight": Quantize(states=8),
        "layers.1.attn.q_proj.weight": LowRank(rank=2),
        "layers.1.mlp.up.weight": Prune(keep=0.5),
        "layers.11.attn.q_proj.weight": Quantize(states=8),
        "layers.11.mlp.up.weight": Prune(keep=0.5),
    }


def test_what_is_ignored_has_no_spec_whatever_else_matches_and_the_rest_has_the_default() -> None:
    specs = found({"embed": "Prune(keep=0.5)", "layers.1.*": "lossless"}, ("emb*",))
    assert [name for name, spec in specs.items() if spec is None] == NAMES[:3]
    assert set(specs.values()) == {None, Quantize()}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("layers.1.mlp.up", ["layers.1.mlp.up.weight"]),
        ("*_proj", [n for n in NAMES if "q_proj" in n]),
        ("re:.*q_proj$", [n for n in NAMES if "q_proj" in n]),
        ("re:(?!.*mlp)", [n for n in NAMES if "mlp" not in n]),
        ("re:layers", NAMES[1:]),
        ("layers.1.*", NAMES[1:3]),
    ],
)
def test_a_pattern_stands_for_tensors_and_for_the_modules_that_hold_them(pattern: str, expected: list[str]) -> None:
    assert [name for name, spec in found(None, (pattern,)).items() if spec is None] == expected


@pytest.mark.parametrize(
    ("recipe", "ignore"),
    [
        ({"re:.*(q|k)_proj": "Quantize(states=64) | LowRank()", "*.mlp.*": Quantize() + Prune()}, ()),
        ({"embed": "lossless", "*": "Quantize(bits=4, group=64)"}, ("*.mlp.*",)),
        ("Quantize() + Prune()", ("embed",)),
        ("Quantize()", ()),
        ("*: lossless", ()),
        (None, ("embed",)),
    ],
)
def test_the_text_gives_the_same_rules_again(recipe: object, ignore: tuple[str, ...]) -> None:
    made = Assignment.of(recipe, ignore)
    assert Assignment.of(made.text) == made


def test_tied_names_take_one_recipe() -> None:
    tied = {"head.weight": "embed.weight"}
    assert found({"re:(embed|head)": "Prune(keep=0.5)"}, aliases=tied)["embed.weight"] == Prune(keep=0.5)
    assert found({"embed": "Prune(keep=0.5)", "*": "Quantize()"}, aliases=tied)["embed.weight"] == Prune(keep=0.5)
    assert found({"head": "Quantize()"}, aliases=tied)["embed.weight"] == Quantize()
    with pytest.raises(BadRecipe, match=r"'head.weight' and 'embed.weight' are one tensor.*'head'.*lossless"):
        found("Quantize()", ("head",), tied)


@pytest.mark.parametrize(
    ("recipe", "ignore", "said"),
    [
        ("Quantize()", ("lm_haed",), "'lm_haed' matches no tensor; of the 5 names some are 'embed"),
        ({"layer.*": "Quantize()"}, (), "'layer.*' matches no tensor.*'layers.1"),
        ("Quantize()", ("layers",), r"holds other modules alone; write 'layers\.\*' for all in it"),
        ({}, (), "at least one"),
        ({"*": "Quantise()"}, (), "did you mean Quantize"),
        ({"re:(": "Quantize()"}, (), "no regular expression"),
        ({3: "Quantize()"}, (), "no pattern of names"),
        ({"a; b": "Quantize()"}, (), "end one in a recipe"),
        ("a: Quantize(); Prune()", (), "names no pattern"),
        ("a: Quantize(); a: Prune()", (), "stands there twice"),
        ("Quantize()", "embed", "give a list"),
    ],
)
def test_what_means_nothing_is_refused(recipe: object, ignore: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadRecipe, match=said):
        found(recipe, ignore)


def test_a_rate_is_fixed_where_every_recipe_fixes_its_own() -> None:
    assert Assignment.of({"a": "Quantize(bits=2)", "*": "Quantize(bits=4)"}, ("b",)).fixed_rate
    assert not Assignment.of({"a": "Quantize(bits=2)"}).fixed_rate
    assert not Assignment.of({"a": "Quantize(bits=2)", "*": "Quantize()"}).fixed_rate


@pytest.mark.parametrize("recipe", ["a: Quantize(); a : Prune()", "a : Quantize(); a: Prune()", {"a ": "Quantize()"}])
def test_blanks_around_a_pattern_hide_nothing(recipe: object) -> None:
    with pytest.raises(BadRecipe, match=r"stands there twice|without blanks"):
        Assignment.of(recipe)


def test_what_is_no_list_is_not_ignored() -> None:
    for ignore in (None, "lm_head", 3):
        with pytest.raises(BadRecipe, match="is no list"):
            Assignment.of(None, ignore)
