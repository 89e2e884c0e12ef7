"""The ready-made loop: budgets, labels or none, interruptions, and what goes wrong."""

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.support.toy_learning import X, Y, accuracy, net, trained
from torch import Tensor, nn

import waterfill
from waterfill import Budget, Options, Steps
from waterfill.errors import BadInput, BadRecipe, BudgetError, PlanMismatch
from waterfill.learn import Imitation, Schedule, Training, run
from waterfill.learn.loop.run import SCALAR
from waterfill.storage.remarks import UNTRAINED

BATCHES = list(X.split(64))
QUICK = Options(steps=Steps(stages=0, repair=False))
TWICE = Training(epochs=3, rate=3e-2, c_steps=2)


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return trained()


@pytest.fixture(scope="module")
def at_once(original: nn.Module) -> float:
    return accuracy(waterfill.compress(original, BATCHES, spec="Quantize()", bits=1.9).install(net()))


@pytest.mark.parametrize("labels", [False, True])
def test_training_in_compressed_form_is_better_than_compressing(original, at_once, labels) -> None:
    before = copy.deepcopy(original.state_dict())
    given: dict[str, Any] = {"batches": X.split(16)}
    if labels:
        given = {
            "batches": list(zip(X.split(16), Y.split(16), strict=True)),
            "forward": lambda model, batch: model(batch[0]),
            "loss": lambda outputs, batch: F.cross_entropy(outputs, batch[1]),
        }
    longer = Training(epochs=4, rate=1.5e-2, c_steps=4)
    made = run(original, spec="Quantize()", budget=Budget(bits=1.9), training=longer, **given)
    assert accuracy(made.install(net())) > at_once + 0.3 * (accuracy(original) - at_once)
    assert made.bits <= 1.9
    assert all(torch.equal(before[name], value) for name, value in original.state_dict().items())


def test_what_is_beside_codes_along_a_trellis_is_trained_too(original) -> None:
    few = Training(epochs=2, rate=4e-3, c_steps=2, last=0.0)  # too few for codes that follow weights to win
    given: dict[str, Any] = {"budget": Budget(bits=3)}
    before, after = (run(original, X.split(16), training=replace(few, last=last), **given) for last in (0.0, 0.2))
    assert UNTRAINED in before.notes["remarks"] and UNTRAINED not in after.notes.get("remarks", [])
    weights = [name for name, entry in before.entries.items() if len(entry.layout.shape) > 1]
    for name in weights:
        codes, same = (made.entries[name].parts[0].codes for made in (before, after))
        assert torch.equal(codes, same)
    assert any(after.entries[name].blob != entry.blob for name, entry in before.entries.items())
    losses = [Imitation()(made.install(net())(X), original(X)).item() for made in (before, after)]
    assert losses[1] < losses[0]


def test_lc_is_run_by_the_same_loop(original) -> None:
    training = Training(epochs=6, rate=0.03, c_steps=2, method="lc", schedule=Schedule(growth=1.5))
    made = run(original, BATCHES, spec="Codebook(levels=2) + Prune(keep=0.02)", budget=Budget(), training=training)
    assert accuracy(made.install(net())) > 0.8 and made.entries["0.weight"].words.startswith("2 levels")


def test_each_layer_may_have_its_own_spec_by_lc(original) -> None:
    specs = {"0.*": "LowRank(rank=2)", "2.*": "Codebook(levels=4)"}
    training = Training(epochs=2, method="lc")
    made = run(original, BATCHES, spec=specs, budget=Budget(), training=training, options=QUICK)
    words = {row["name"]: row["part"] for row in made.table()}
    assert "rank 2" in words["0.weight"] and "4 levels" in words["2.weight"]
    with pytest.raises(BadRecipe, match="for each layer"):
        run(original, BATCHES, spec=specs, budget=Budget(bits=2), training=TWICE, options=QUICK)


class Interrupted(Exception):
    """What ends a run in its midst."""


def interrupted_after(count: int) -> list[Tensor]:
    class Batches(list):  # type: ignore[type-arg]
        taken = 0

        def __getitem__(self, index: Any) -> Any:
            Batches.taken += 1
            if Batches.taken > count:
                raise Interrupted
            return super().__getitem__(index)

    return Batches(BATCHES)


@pytest.mark.parametrize(
    ("spec", "count"),
    [("Quantize()", 20), *(pytest.param(None, count, marks=pytest.mark.slow) for count in (3, 20, 44))],
)
def test_an_interrupted_training_ends_as_if_nothing_had_been(original, tmp_path, spec, count) -> None:
    asked: dict[str, Any] = {"spec": spec, "budget": Budget(bits=2), "training": TWICE}
    whole = run(original, BATCHES, options=QUICK, **asked)
    options = replace(QUICK, work=tmp_path / "work")
    with pytest.raises(Interrupted):
        run(original, interrupted_after(count), options=options, **asked)
    again = run(original, BATCHES, options=options, **asked)
    assert {name: entry.blob for name, entry in again.entries.items()} == {
        name: entry.blob for name, entry in whole.entries.items()
    }
    assert list(tmp_path.rglob("*.*")) == []


def test_sums_are_gone_on_with_from_the_parts_that_they_had(original, tmp_path) -> None:
    training = Training(epochs=4, rate=0.03, c_steps=1, method="lc", schedule=Schedule(growth=1.5))
    asked: dict[str, Any] = {"budget": Budget(), "spec": "Codebook(levels=2) + Prune(keep=0.02)", "training": training}
    whole = run(original, BATCHES, **asked)
    options = Options(work=tmp_path / "work")
    with pytest.raises(Interrupted):
        run(original, interrupted_after(40), options=options, **asked)
    again = run(original, BATCHES, options=options, **asked)
    assert all(again.entries[name].blob == entry.blob for name, entry in whole.entries.items())


def test_a_folder_of_another_training_is_refused(original, tmp_path) -> None:
    options = replace(QUICK, work=tmp_path / "work")
    with pytest.raises(Interrupted):
        run(original, interrupted_after(3), spec="Quantize()", budget=Budget(bits=2), training=TWICE, options=options)
    with pytest.raises(PlanMismatch, match="budget"):
        run(original, BATCHES, spec="Quantize()", budget=Budget(bits=3), training=TWICE, options=options)
    with pytest.raises(PlanMismatch, match="weights"):
        run(net(7).eval(), BATCHES, spec="Quantize()", budget=Budget(bits=2), training=TWICE, options=options)


class Short:
    """A loader that says more than it gives."""

    def __len__(self) -> int:
        return len(BATCHES)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(BATCHES[:3])


def test_what_goes_wrong_is_said(original, tmp_path) -> None:
    with pytest.raises(BadInput, match=r"the loss is nan in step 1 of .*lower the rate"):
        run(
            original,
            BATCHES,
            spec="Quantize()",
            budget=Budget(price=1e-3),
            loss=lambda y, _: y.sum() * torch.nan,
            training=TWICE,
            options=QUICK,
        )
    with pytest.raises(BadInput, match=r"(run away in training|the loss is).*lower the rate"):
        run(
            original,
            BATCHES,
            spec="Quantize()",
            budget=Budget(price=1e-3),
            training=replace(TWICE, rate=1e9),
            options=QUICK,
        )
    with pytest.raises(BudgetError, match="smallest"):
        run(original, BATCHES, spec="Quantize()", budget=Budget(size=9), options=replace(QUICK, work=tmp_path / "work"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadInput, match=r"gave 3 batches in epoch 1 and 16"):
        run(original, Short(), spec="Quantize()", budget=Budget(price=1e-3), training=TWICE, options=QUICK)
    with pytest.raises(BadInput, match="a list or a loader"):
        run(original, (x for x in BATCHES), spec="Quantize()", budget=Budget(bits=2))
    with pytest.raises(BadInput, match="there are no batches"):
        run(original, [], spec="Quantize()", budget=Budget(bits=2))
    with pytest.raises(BadRecipe, match="method='magic'"):
        Training(method="magic")
    with pytest.raises(BadRecipe, match="epochs"):
        Training(epochs=0)


def test_progress_goes_to_its_end(original) -> None:
    said: list[waterfill.Progress] = []
    run(
        original,
        BATCHES,
        spec="Quantize()",
        budget=Budget(price=1e-3),
        training=TWICE,
        options=replace(QUICK, progress=said.append),
    )
    learning = [one for one in said if one.stage == "learning"]
    assert [one.done for one in learning] == list(range(1, 49)) and learning[-1].total == 48


class Normed(nn.Module):
    """A convolution, a norm, tied tables and several outputs: what a plain network does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.rnn, self.head = nn.LSTM(16, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.relu(self.norm(self.conv(x))).mean(3).transpose(1, 2)
        states = self.rnn(rows)[0]
        return self.head(states), states[:, -1]


@pytest.mark.parametrize("method", ["straight-through", "lc"])
def test_norms_are_folded_and_recurrent_layers_learn_too(method) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Normed(), torch.randn(64, 3, 8, 8)
        model.train()(x)
    given: dict[str, Any] = (
        {"spec": "Codebook(levels=8)", "budget": Budget()}
        if method == "lc"
        else {"spec": "Quantize()", "budget": Budget(bits=6)}
    )
    training = Training(epochs=2, rate=1e-2, c_steps=2, method=method)
    made = run(model.eval(), x.split(16), training=training, options=QUICK, **given)
    assert made.notes["folded"]
    with torch.no_grad():
        expected, found = model(x)[0], made.install(Normed()).eval()(x)[0]
    assert float((found - expected).norm() / expected.norm()) < 0.35


def test_codes_that_learn_have_no_width_that_kernels_need(original) -> None:
    with pytest.raises(BadRecipe, match="no given width"):
        run(original, X.split(64), budget=Budget(bits=4), options=Options(runs="packed"))


def test_a_budget_just_above_the_smallest_file_is_met(original) -> None:
    with pytest.raises(BudgetError) as caught:
        waterfill.compress(original, list(X.split(64)), spec="Quantize()", size=30)
    least = int(re.findall(r"[0-9]+", str(caught.value))[1])
    few = Training(epochs=1, last=0.0)
    assert run(original, X.split(64), budget=Budget(size=least + 4), spec="Quantize()", training=few).size <= least + 4


def test_embeddings_with_sparse_gradients_are_like_others() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 8))
    sparse = nn.Sequential(nn.Embedding(30, 16, sparse=True), nn.Linear(16, 8))
    sparse.load_state_dict(plain.state_dict())
    batches = list(torch.randint(0, 30, (128, 4)).split(16))
    few = Training(epochs=2, rate=1e-2)
    found = [run(each, batches, budget=Budget(bits=4), training=few).state_dict() for each in (plain, sparse)]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_budget_that_compress_meets_is_met() -> None:
    torch.manual_seed(0)
    tiny = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    inputs = [torch.randn(16, 16) for _ in range(8)]

    def smallest(spec: str | None) -> int:
        with pytest.raises(BudgetError) as refused:
            run(tiny, inputs, spec=spec, budget=Budget(size=100), training=Training(epochs=1), options=QUICK)
        return int(re.findall("smallest .* has ([0-9]+)", str(refused.value))[0])

    whole, scalar = smallest(None), smallest(SCALAR)
    assert whole < scalar
    for size in (whole, scalar - 1):
        assert run(tiny, inputs, budget=Budget(size=size), training=Training(epochs=1), options=QUICK).size <= size
