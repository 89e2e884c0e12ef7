"""What each weight becomes by itself, and that nothing is kept that makes outputs worse."""

import copy

import pytest
import torch
from torch import nn

import waterfill
from waterfill.compression import post_training
from waterfill.compression.options import Steps
from waterfill.compression.post_training import DEFAULT_SPEC
from waterfill.evaluation.outputs import ReferenceOutputs

QUICK = Steps(stages=0, repair=False)


def network() -> nn.Sequential:
    """A matrix of rank two between two that have full rank."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))
    with torch.no_grad():
        model[2].weight.copy_(torch.randn(48, 2) @ torch.randn(2, 48) / 12)
    return model.eval()


BATCHES = list(torch.randn(256, 24, generator=torch.Generator().manual_seed(1)).split(64))


@pytest.fixture(scope="module")
def automatic() -> waterfill.CompressedModel:
    with torch.random.fork_rng():
        return waterfill.compress(network(), BATCHES, bits=4, options=waterfill.Options(steps=QUICK))


def test_each_weight_takes_what_suits_it(automatic):
    words = {name: entry.words for name, entry in automatic.entries.items()}
    assert words["2.weight"].startswith("rank 2")
    assert "rank" not in words["0.weight"] and "rank" not in words["4.weight"]
    assert automatic.notes["recipe"] == "automatic"


def test_a_choice_is_no_worse_than_its_first_term_at_the_same_bytes(automatic):
    held = torch.randn(400, 24, generator=torch.Generator().manual_seed(2))
    first = DEFAULT_SPEC.split(" | ")[0]
    alone = waterfill.compress(network(), BATCHES, spec=first, bits=4, options=waterfill.Options(steps=QUICK))
    with torch.no_grad():
        errors = [float((made.install(network())(held) - network()(held)).norm()) for made in (automatic, alone)]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.slow
def test_a_refit_that_makes_outputs_worse_is_not_kept(automatic, monkeypatch):
    model = network()

    def ruin(work, ledger, *_, **__):
        for i in range(len(work.weights)):
            ledger.bits[i] = work.fit(i, 1e6 * ledger.prices[i])

    monkeypatch.setattr(post_training, "refit_in_order", ruin)
    made = waterfill.compress(model, BATCHES, bits=4, options=waterfill.Options(steps=Steps(repair=False)))
    assert {n: e.blob for n, e in made.entries.items()} == {n: e.blob for n, e in automatic.entries.items()}


def test_a_judge_tells_how_far_outputs_are():
    model = network()
    judge = ReferenceOutputs(model, BATCHES)
    exact, coarse = waterfill.compress(model, lossless=True), waterfill.compress(model, bits=3)
    finer = waterfill.compress(model, bits=6)
    assert judge.error(exact) == pytest.approx(0, abs=1e-7)
    assert judge.error(exact) < judge.error(finer) < judge.error(coarse)
    before = copy.deepcopy(model.state_dict())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
