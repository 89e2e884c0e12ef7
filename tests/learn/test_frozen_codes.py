"""The last phase: codes stay, and scales, levels, kept entries and vectors are trained."""

import copy

import pytest
import torch
from tests.support.toy_learning import X, accuracy, goes_on_alike, learned, net, trained
from torch import nn

import waterfill
from waterfill.errors import BadInput, BudgetError, Mismatch
from waterfill.learn import FrozenCodes, StraightThrough

CALIBRATING = list(X.split(256))


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return trained()


def codes_of(made: waterfill.CompressedModel) -> list[torch.Tensor]:
    """The codes of every weight, or which entries are kept."""
    weights = [entry.parts[0] for entry in made.entries.values() if entry.layout.role == "m"]
    return [torch.as_tensor(part.mask if hasattr(part, "mask") else part.codes) for part in weights]


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ("Quantize()", {"bits": 2.0}),
        ("Quantize(states=8)", {"bits": 2.0}),
        ("Quantize(bits=2, group=12)", {}),
        ("Codebook(levels=3)", {}),
        ("Prune(keep=0.3, values=Dense(mantissa=5))", {}),
    ],
)
def test_what_is_no_code_learns(original, spec, size, tmp_path) -> None:
    made = waterfill.compress(original, CALIBRATING, spec=spec, **(size or {"price": 1e-5}))
    before = accuracy(made.install(net()))
    learner = FrozenCodes(copy.deepcopy(original), made, made.size + 200)
    after = learned(learner, original, rate=1e-2).result()
    assert accuracy(after.install(net())) > before
    assert after.save(tmp_path / "m.wf") == after.size <= made.size + 200
    assert all(torch.equal(a, b) for a, b in zip(codes_of(made), codes_of(after), strict=True))
    changed = [name for name, entry in made.entries.items() if after.entries[name].blob != entry.blob]
    assert any(name.endswith("weight") for name in changed)
    state = waterfill.load(tmp_path / "m.wf").state_dict()
    for name, value in learner.model.state_dict().items():
        if name.endswith("weight"):  # what was trained is what was written
            torch.testing.assert_close(state[name], value, rtol=0.02, atol=1e-3)


def test_a_snapshot_goes_on_as_if_nothing_had_been(original) -> None:
    made = waterfill.compress(original, CALIBRATING, spec="Codebook(levels=3)", price=1e-5)
    learner = learned(FrozenCodes(copy.deepcopy(original), made), original, epochs=1)
    goes_on_alike(learner, FrozenCodes(copy.deepcopy(original), made))


def test_a_file_of_fewer_bytes_is_refused(original) -> None:
    roomy = waterfill.compress(original, CALIBRATING, spec="Quantize()", bits=6)
    learner = learned(FrozenCodes(copy.deepcopy(original), roomy, roomy.size - 200), original, epochs=1)
    with pytest.raises(BudgetError, match="before training"):
        learner.result()


def test_scales_that_moved_least_stay_where_there_is_no_room(original) -> None:
    made = waterfill.compress(original, CALIBRATING, spec="Quantize()", bits=2)
    learner = learned(FrozenCodes(copy.deepcopy(original), made), original, rate=2e-2)
    after = learner.result()
    assert after.size <= made.size and after is not made
    assert accuracy(after.install(net())) >= accuracy(made.install(net()))


def test_scales_learn_where_no_vector_does(original) -> None:
    plain = nn.Sequential(nn.Linear(24, 40, bias=False), nn.ReLU(), nn.Linear(40, 10, bias=False))
    made = waterfill.compress(plain, CALIBRATING, spec="Quantize()", bits=2)
    learner = learned(FrozenCodes(copy.deepcopy(plain), made), plain, epochs=1)
    assert made.size - 8 <= learner.result().size <= made.size
    assert learner.result().entries["0.weight"].blob != made.entries["0.weight"].blob


def test_what_is_stored_to_the_bit_is_not_trained(original) -> None:
    for plain in (original, nn.Linear(8, 8, bias=False)):
        with pytest.raises(BadInput, match="nothing to train"):
            FrozenCodes(copy.deepcopy(plain), waterfill.compress(plain, lossless=True))
    made = waterfill.compress(original, CALIBRATING, spec={"0.weight": "lossless", "*": "Quantize()"}, price=1e-6)
    after = learned(FrozenCodes(copy.deepcopy(original), made, made.size + 200), original, epochs=1).result()
    assert after.entries["0.weight"].blob == made.entries["0.weight"].blob
    assert after.entries["2.weight"].blob != made.entries["2.weight"].blob


def test_frozen_parameters_stay(original) -> None:
    made = waterfill.compress(original, CALIBRATING, spec="Quantize()", bits=2)
    held = copy.deepcopy(original)
    held[0].weight.requires_grad_(False)
    after = learned(FrozenCodes(held, made), original, epochs=1).result()
    assert after.entries["0.weight"].blob == made.entries["0.weight"].blob
    assert after.entries["2.weight"].blob != made.entries["2.weight"].blob


@pytest.mark.parametrize("learner", [FrozenCodes, StraightThrough])
def test_networks_of_other_shapes_are_refused(original, learner) -> None:
    made = waterfill.compress(original, CALIBRATING, spec="Quantize()", bits=2)
    with pytest.raises(Mismatch, match="give the network that was compressed"):
        learner(nn.Sequential(nn.Linear(24, 30), nn.ReLU(), nn.Linear(30, 10)), made)
    with pytest.raises(Mismatch, match="meta"):
        learner(net().to("meta"), made)
