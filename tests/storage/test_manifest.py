"""What a file says about its tensors: a round trip, and refusals of all that no writer would have written."""

import contextlib
import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterfill.errors import CorruptFile, NewerFormat
from waterfill.model.entry import layout_in
from waterfill.storage.manifest import KERNEL, MATRIX, ROLES, STACK, VECTOR, Row, pack, unpack

DTYPES = ("float32", "bfloat16", "int64", "bool")


@st.composite
def rows(draw: st.DrawFn) -> Row:
    role = draw(st.sampled_from(ROLES))
    least = {KERNEL: 3, STACK: 3, MATRIX: 2}.get(role, 0)
    shape = tuple(draw(st.lists(st.integers(0, 40), min_size=least, max_size=5)))
    return Row(shape, draw(st.sampled_from(DTYPES)), role, draw(st.text(max_size=12)), draw(st.text(max_size=12)))


@given(st.lists(rows(), max_size=20))
def test_round_trip_through_json(table):
    assert unpack(json.loads(json.dumps(pack(table))), len(table)) == table


GOOD = pack(
    [
        Row((4, 6), "float32", MATRIX, "quantized", ""),
        Row((6,), "float16", VECTOR, "constant 0", "one-dimensional"),
        Row((4, 2, 3, 3), "float32", KERNEL, "quantized", ""),
    ]
)


def changed(*at: str | int, to: object) -> dict:
    """GOOD with one value replaced."""
    packed = json.loads(json.dumps(GOOD))
    inner = packed
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = to
    return packed


@pytest.mark.parametrize(
    "packed",
    [
        None,
        [],
        "text",
        {},
        {**GOOD, "roles": "mv"},
        {**GOOD, "roles": 3},
        {**GOOD, "shapes": None},
        {**GOOD, "shapes": [["4,6"], [0, 0]]},
        {**GOOD, "words": [[], []]},
        changed("shapes", 1, 0, to=-1),
        changed("shapes", 1, 0, to=99),
        changed("shapes", 1, 0, to=0.5),
        changed("shapes", 1, 0, to="0"),
        changed("shapes", 0, 0, to=7),
        changed("shapes", 0, 0, to="4,-6"),
        changed("shapes", 0, 0, to="4,x"),
        changed("shapes", 0, 0, to="24"),
        changed("shapes", 0, 2, to="4,2"),
        changed("shapes", 0, 0, to=",".join(["2"] * 17)),
        changed("shapes", 0, 0, to="1099511627777,1"),
        changed("shapes", 0, 0, to="9" * 5000),
        changed("shapes", 0, 0, to="0,4611686018427387904,4611686018427387904"),
    ],
    ids=lambda packed: json.dumps(packed)[-60:],
)
def test_what_no_writer_would_write_is_corrupt(packed):
    with pytest.raises(CorruptFile):
        unpack(packed, 3)


def test_what_a_newer_release_may_write_is_named():
    with pytest.raises(NewerFormat, match="role 'z'"):
        unpack(changed("roles", to="mzk"), 3)
    with pytest.raises(NewerFormat, match="'float31' is not known"):
        layout_in(unpack(changed("dtypes", 0, 0, to="float31"), 3)[0])


@given(st.data())
def test_any_json_value_in_any_place_is_read_or_refused(data):
    value = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    )
    packed = copy.deepcopy(GOOD)
    key = data.draw(st.sampled_from(sorted(packed)))
    if key != "roles" and data.draw(st.booleans()):
        packed[key][data.draw(st.integers(0, 1))] = data.draw(value)
    else:
        packed[key] = data.draw(value)
    with contextlib.suppress(CorruptFile, NewerFormat):
        assert len(unpack(packed, 3)) == 3
