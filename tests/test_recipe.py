"""Recipes: what they mean, that they are never evaluated, and that errors point at the place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterfill.errors import BadRecipe
from waterfill.part import Choice, Spec, SumSpec
from waterfill.parts import Codebook, LowRank, Prune, Quantize, Sampled
from waterfill.recipe import kinds, parse

leaves = st.one_of(
    st.just(Quantize()),
    st.builds(Codebook, levels=st.none() | st.integers(1, 256)),
    st.builds(Sampled, family=st.sampled_from([None, "normal", "uniform"]), seed=st.integers(0, (1 << 63) - 1)),
)
containers = st.one_of(
    leaves,
    st.builds(LowRank, rank=st.none() | st.integers(0, 99), factors=st.none() | leaves),
    st.builds(
        Prune,
        keep=st.none() | st.floats(0, 1),
        pattern=st.sampled_from(["entry", "rows", "3x5"]),
        values=st.none() | leaves,
    ),
)
sums = st.one_of(containers, st.builds(lambda a, b: a + b, containers, containers))
specs = st.one_of(sums, st.builds(lambda a, b: a | b, sums, sums))


@given(specs)
def test_repr_is_a_recipe(spec: Spec) -> None:
    assert parse(repr(spec)) == spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("Quantize()", Quantize()),
        ("  Prune( keep = 0.03 )  ", Prune(keep=0.03)),
        ("Codebook(levels=16)", Codebook(levels=16)),
        ("LowRank(rank=8, factors=Codebook(levels=4))", LowRank(rank=8, factors=Codebook(levels=4))),
        ("Prune(values=Codebook() | Quantize())", Prune(values=Codebook() | Quantize())),
        ("Quantize() + Prune() + LowRank()", SumSpec((Quantize(), Prune(), LowRank()))),
        ("Quantize() + Prune() | LowRank()", Choice((Quantize() + Prune(), LowRank()))),
        ("Quantize() + (Prune() | LowRank())", SumSpec((Quantize(), Prune() | LowRank()))),
    ],
)
def test_meaning(text: str, spec: Spec) -> None:
    assert parse(text) == spec


def test_only_arguments_that_differ_are_shown() -> None:
    assert repr(Prune(keep=0.03)) == "Prune(keep=0.03)"
    assert repr(Prune()) == "Prune()"
    assert repr(LowRank(factors=Codebook(values="binary"))) == "LowRank(factors=Codebook(values='binary'))"
    assert repr(Quantize() + (Prune() | LowRank(rank=2))).startswith("Quantize() + (Prune() | ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Quantise()", "character 1: there is no 'Quantise'; did you mean Quantize"),
        ("Quantize() + Prun()", "character 14: there is no 'Prun'; did you mean Prune"),
        ("Wavelets()", "known are .*Prune"),
        ("Prune(kep=0.1)", "character 11: Prune has no argument 'kep'; it takes keep, pattern, values"),
        ("Prune(0.1)", "character 7: arguments of Prune are given by name; it takes keep"),
        ("Prune(keep=2)", "character 1: Prune: keep=2 is not a fraction"),
        ("Quantize() + Prune(keep='much')", "character 14: "),
        ("Prune", r"Prune needs parentheses: Prune\(\)"),
        ("Quantize() - Prune()", "is not a spec"),
        ("3", "'3' is not a spec"),
        ("Quantize() + )", "cannot be read at character 14"),
        ("Quantize() +", "cannot be read"),
        ("", "cannot be read"),
        ("Prune(**{'keep': 0.1})", "no argument None"),
        ("Prune(keep=__import__('os').sep)", "neither a literal nor a spec|not a spec"),
        ("__import__('os')", "there is no '__import__'"),
        ("SumSpec(terms=())", "there is no 'SumSpec'"),
        ("().__class__()", "is not a spec"),
        ("LowRank(factors=3)", "LowRank"),
        (" + ".join(["Quantize()"] * 5), "two to 4 terms"),
        ("(" * 500 + ")" * 500, "cannot be read"),
        ("x" * 5000, "5000 characters"),
    ],
)
def test_errors_say_where(text: str, message: str) -> None:
    with pytest.raises(BadRecipe, match=message):
        parse(text)


@given(st.text(alphabet="QPrune()+|,=. 12'x[]{}:*-", max_size=40))
def test_any_text_is_a_spec_or_a_bad_recipe(text: str) -> None:
    try:
        assert isinstance(parse(text), Spec)
    except BadRecipe as error:
        assert "recipe" in str(error)


def test_new_kinds_are_found_by_themselves() -> None:
    class Fresh(Quantize):
        pass

    assert kinds()["Fresh"] is Fresh
    assert isinstance(parse("Fresh()"), Fresh)
    assert "Spec" not in kinds()
