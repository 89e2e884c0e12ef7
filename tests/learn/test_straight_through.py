"""Codes that follow the weights."""

import copy

import pytest
import torch
from tests.support.toy_learning import X, accuracy, goes_on_alike, learned, net, trained
from torch import nn

import waterfill
from waterfill.errors import BadInput, BudgetError
from waterfill.learn import StraightThrough

BITS = 2.0


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return trained()


@pytest.fixture(scope="module")
def made(original: nn.Module) -> waterfill.CompressedModel:
    return waterfill.compress(original, list(X.split(256)), spec="Quantize()", bits=BITS)


def test_it_begins_with_what_was_compressed(original, made) -> None:
    learner = StraightThrough(copy.deepcopy(original), made)
    same = learner.result()
    assert {name: entry.blob for name, entry in same.entries.items() if entry.layout.role == "m"} == {
        name: entry.blob for name, entry in made.entries.items() if entry.layout.role == "m"
    }
    assert torch.equal(learner.model[0].weight, made.state_dict()["0.weight"])


def test_codes_learn_without_labels_in_no_more_bytes(original, made, tmp_path) -> None:
    before, best = accuracy(made.install(net())), accuracy(original)
    after = learned(StraightThrough(copy.deepcopy(original), made), original).result()
    assert accuracy(after.install(net())) > before + 0.4 * (best - before)
    assert after.save(tmp_path / "m.wf") == after.size <= made.size
    state = waterfill.load(tmp_path / "m.wf").state_dict()
    assert all(torch.equal(state[name], value) for name, value in after.state_dict().items())


def test_the_price_brings_the_file_to_fewer_bytes(original, made) -> None:
    size = int(0.8 * made.size)
    learner = learned(StraightThrough(copy.deepcopy(original), made, size), original)
    assert 0.85 * size < learner.result().size <= size
    assert abs(learner.file_size / size - 1) < 0.1  # training itself came near: little was left to cut


def test_a_snapshot_goes_on_as_if_nothing_had_been(original, made) -> None:
    learner = learned(StraightThrough(copy.deepcopy(original), made), original, epochs=1)
    goes_on_alike(learner, StraightThrough(copy.deepcopy(original), made))


def test_codes_that_go_to_and_fro_are_written_as_on_average(original, made) -> None:
    learner = StraightThrough(copy.deepcopy(original), made, made.size + 100)
    positions, was = learner.parameters()[0], made.state_dict()["0.weight"]
    for step in range(201):
        with torch.no_grad():
            positions += (-1) ** step * (4.0 if step else 2.0)
        learner.after_step()
    assert not torch.equal(learner.model[0].weight, was)
    codes = learner.result().state_dict()["0.weight"]
    assert float((codes != was).float().mean()) < 0.02
    assert torch.equal(learner.model[0].weight, codes)


def test_what_has_no_free_codes_is_refused(original, made) -> None:
    with pytest.raises(BadInput, match='spec="Quantize'):
        StraightThrough(copy.deepcopy(original), waterfill.compress(original, spec="Codebook(levels=4)", bits=8))
    with pytest.raises(BadInput, match="every matrix of the network is frozen"):
        StraightThrough(copy.deepcopy(original).requires_grad_(False), made)
    with pytest.raises(BudgetError, match="codes of zero"):
        StraightThrough(copy.deepcopy(original), made, 20).result()
