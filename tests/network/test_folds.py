"""Which norms were folded into which layers: found by the tensors, kept in a few bytes, done again to a checkpoint."""

import json
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.small_networks import Normed, images, lively
from torch import nn

from waterfill.errors import CorruptFile
from waterfill.network.batch_norm import fold_batch_norm, folds_between
from waterfill.network.folds import folded_tensors, touched
from waterfill.storage.folds import Fold, pack, unpack


@pytest.fixture(scope="module")
def before() -> nn.Module:
    return lively(Normed, images(64))


def test_the_folds_of_every_kind_of_layer_are_found_and_give_the_same_tensors(before) -> None:
    after = fold_batch_norm(before, images(2))
    folds = folds_between(before, after)
    assert {(fold.norm, fold.layer, fold.eps, fold.transposed) for fold in folds} == {
        ("bn1", "conv1", 1e-5, False),
        ("bn2", "conv2", 1e-3, False),
        ("bn3", "up", 1e-5, True),
        ("bn4", "hidden", 1e-5, False),
    }
    state = dict(before.state_dict())
    for fold in unpack(pack(folds, state), state):
        state |= folded_tensors({name: state[name] for name in touched(fold) if name in state}, fold)
    assert state.keys() == after.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in after.state_dict().items())
    assert folds_between(before, before) == []


def test_a_norm_that_was_not_folded_is_not_taken_for_one(before) -> None:
    after = fold_batch_norm(before, images(2))
    after.bn2.load_state_dict(before.bn2.state_dict())
    after.conv2.load_state_dict(before.conv2.state_dict())
    assert [fold.norm for fold in folds_between(before, after)] == ["bn1", "bn3", "bn4"]
    after.conv1.weight.data[3, 1, 1, 1] += 1e-3  # what no fold explains
    assert [fold.norm for fold in folds_between(before, after)] == ["bn3", "bn4"]


names = [
    f"{module}.{own}" for i in range(5) for module in (f"c{i}", f"n{i}") for own in ("weight", "running_var")[i % 2 :]
]


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(1e-9, 1), st.booleans()), max_size=5))
def test_what_is_packed_comes_out(drawn) -> None:
    modules = list(dict.fromkeys(name.partition(".")[0] for name in names))
    norms = [module for module in modules if f"{module}.running_var" in names]
    folds = [
        Fold(norm, modules[at], eps, turned)
        for norm, (at, eps, turned) in zip(norms, drawn, strict=False)
        if modules[at] != norm
    ]
    packed = pack(folds, names)
    assert unpack(json.loads(json.dumps(packed)), names) == folds and (packed is False) is (not folds)


def test_it_takes_next_to_nothing() -> None:
    modules = [name for i in range(60) for name in (f"layers.{i}.conv", f"layers.{i}.norm")]
    own = [f"{m}.{part}" for m in modules for part in (("weight",) if m.endswith("conv") else ("bias", "running_var"))]
    folds = [Fold(f"layers.{i}.norm", f"layers.{i}.conv", 1e-5) for i in range(60)]
    manifest = {"names": own, "notes": {"folded": True}}
    more = {"names": own, "notes": {"folded": pack(folds, own)}}
    sizes = [len(zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 9)) for value in (manifest, more)]
    assert sizes[1] - sizes[0] < 40
    assert unpack(pack(folds, own), own) == folds


@pytest.mark.parametrize(
    "packed",
    [1, "yes", [1], {"back": [1]}, {"back": "1", "eps": [1e-5]}, {"back": [1.5], "eps": [1e-5]},
     {"back": [1, 1], "eps": [1e-5]}, {"back": [9], "eps": [1e-5]}, {"back": [-9], "eps": [1e-5]},
     {"back": [1], "eps": ["x"]}, {"back": [1], "eps": [1e-5, 1e-5]}, {"back": [1], "eps": [-1.0]}],
)  # fmt: skip
def test_what_no_writer_wrote_is_damage(packed) -> None:
    with pytest.raises(CorruptFile, match="folded"):
        unpack(packed, ["conv.weight", "norm.running_var"])


def test_what_is_not_said_is_not_known() -> None:
    assert unpack(True, ["a.weight"]) is None and unpack(False, []) == [] and unpack(None, []) == []
