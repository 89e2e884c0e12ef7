"""What a result holds is what was learned, and what is around a training stays as it was."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from tests.support.toy_learning import X, Y, net, trained
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import waterfill
from waterfill import Budget, Options, Steps
from waterfill.errors import BadInput, OutputExists, PlanMismatch
from waterfill.learn import LC, Distillation, Imitation, Schedule, StraightThrough, Training, distill, run

BATCHES = list(X.split(64))
QUICK = Steps(stages=0, repair=False)
SHORT = Training(epochs=1, rate=1e-2, c_steps=2)
TWO_BITS = Budget(bits=2)
A_PRICE = Budget(price=1e-3)  # is met at once


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return trained()


def far_off(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest error of a tensor relative to its norm."""
    gaps = [(found[n].double() - v.double()).norm() / v.double().norm().clamp_min(1e-9) for n, v in expected.items()]
    return float(max(gaps))


def with_norm() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def drifted(model: nn.Module, learner: "LC | StraightThrough", steps: int = 8) -> None:
    """Some steps that move everything, towards outputs of three."""
    optimizer = torch.optim.SGD(learner.parameters(), 0.05)
    for x in BATCHES[:steps]:
        optimizer.zero_grad()
        ((model(x) - 3).square().mean() + learner.penalty()).backward()
        learner.after_backward()
        optimizer.step()
        learner.after_step()
    learner.c_step()


@pytest.mark.parametrize("change", [lambda model: model, lambda model: model.double().float()], ids=["", "moved"])
def test_lc_gives_small_tensors_and_statistics_as_they_are_now(change) -> None:
    model = with_norm().train()
    lc = LC(model, "Quantize()", budget=Budget(bits=8), schedule=Schedule(mu=1e-2))
    change(model)
    lc.c_step()
    drifted(model, lc)
    assert far_off(lc.result().state_dict(), model.state_dict()) < 0.1
    assert int(lc.result().state_dict()["1.num_batches_tracked"]) == 8


def test_straight_through_gives_statistics_as_they_are_now() -> None:
    model = with_norm()
    made = waterfill.compress(model, spec="Quantize()", bits=6)
    model.train()
    learner = StraightThrough(model, made, made.size + 400)
    drifted(model, learner)
    assert far_off(learner.result().state_dict(), model.state_dict()) < 0.1


def test_what_is_zeros_and_ones_at_first_is_learned_too() -> None:
    model = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10))
    nn.init.eye_(model[0].weight)
    lc = LC(model, "Quantize()", budget=Budget(bits=8), schedule=Schedule(mu=1e-2))
    drifted(model, lc)
    assert far_off(lc.result().state_dict(), model.state_dict()) < 0.05


def test_gradients_are_those_of_one_step_alone(original) -> None:
    made = waterfill.compress(original, spec="Quantize()", bits=3)
    ends = []
    for zeroed in (False, True):
        model = copy.deepcopy(original)
        learner = StraightThrough(model, made)
        optimizer = torch.optim.SGD(learner.parameters(), 0.05)
        for x in BATCHES[:4]:
            optimizer.zero_grad()
            if zeroed:
                model.zero_grad()
            Imitation()(model(x), original(x)).backward()
            learner.after_backward()
            optimizer.step()
            learner.after_step()
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], value) for name, value in ends[1].items())


def test_the_first_mu_is_found_where_the_network_imitates_itself(original) -> None:
    model = copy.deepcopy(original)
    lc = LC(model, "Codebook(levels=2)")
    before = copy.deepcopy(model.state_dict())
    mu = lc.start(lambda: Imitation()(model(X), original(X)))
    assert 1e-4 < mu < 10
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_long_lc_training_stays_near_what_it_learned(original) -> None:
    loss = {"forward": lambda m, b: m(b[0]), "loss": lambda y, b: F.cross_entropy(y, b[1])}
    pairs = list(zip(X[:256].split(32), Y[:256].split(32), strict=True))
    training = Training(epochs=40, rate=0.03, method="lc")
    made = run(original, pairs, budget=Budget(bits=3), training=training, options=Options(steps=QUICK), **loss)
    with torch.no_grad():
        assert F.cross_entropy(made.install(net())(X[:256]), Y[:256]) < 0.5


def test_nothing_learned_is_behind_what_compressing_gives(original) -> None:
    reckless = Training(epochs=1, rate=0.5, last=0)
    made = run(original, BATCHES, budget=TWO_BITS, training=reckless, options=Options(steps=QUICK))
    with torch.no_grad():
        few = BATCHES[::2][:8]
        plain = waterfill.compress(original, few, bits=2, options=Options(steps=QUICK)).install(net())(X)
        assert Imitation()(made.install(net())(X), original(X)) < 1.2 * Imitation()(plain, original(X))
    assert "training made" in made.warnings.get("", "")


class Counting(nn.Module):
    """Writes into its input and counts its runs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("runs", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.inner(x.sub_(0.1))


@pytest.mark.parametrize("method", ["straight-through", "lc"])
def test_inputs_and_buffers_stay(original, method) -> None:
    model, batches = Counting(copy.deepcopy(original)), [x.clone() for x in BATCHES[:4]]
    made = run(model, batches, spec="Quantize()", budget=A_PRICE, training=Training(epochs=1, method=method))
    assert all(torch.equal(a, b) for a, b in zip(batches, BATCHES, strict=False))
    assert float(model.runs) == float(made.state_dict()["runs"]) == 0
    distill(net(3), model, batches, how=Distillation(epochs=1))
    assert all(torch.equal(a, b) for a, b in zip(batches, BATCHES, strict=False)) and float(model.runs) == 0


def test_random_numbers_of_the_owner_go_on(original) -> None:
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(1), random.random()
    torch.manual_seed(5)
    random.seed(5)
    distill(net(3), original, BATCHES[:2], how=Distillation(epochs=1))
    run(original, BATCHES[:4], spec="Quantize()", budget=A_PRICE, training=SHORT, options=Options(steps=QUICK))
    assert (torch.rand(1), random.random()) == expected


def test_frozen_parameters_stay_what_they_were_compressed_to(original) -> None:
    model = copy.deepcopy(original)
    model[0].requires_grad_(False)
    asked = {"spec": "Quantize()", "budget": A_PRICE}
    made = run(model, BATCHES, training=SHORT, options=Options(steps=QUICK), **asked)
    plain = run(model, BATCHES, training=Training(epochs=0.05, rate=1e-9), options=Options(steps=QUICK), **asked)
    assert made.entries["0.weight"].blob == plain.entries["0.weight"].blob


def test_a_half_precision_network_is_trained_in_full(original) -> None:
    model = copy.deepcopy(original).bfloat16()
    made = run(model, [x.bfloat16() for x in BATCHES], spec="Quantize()", budget=A_PRICE, training=SHORT)
    assert all(torch.isfinite(value).all() for value in made.state_dict().values())


def test_another_loss_and_other_inputs_are_another_training(original, tmp_path) -> None:
    options = Options(work=tmp_path / "work", steps=QUICK)

    def interrupted(made: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(original, BATCHES, spec="Quantize()", budget=A_PRICE, training=SHORT, options=options, save=interrupted)
    assert (tmp_path / "work" / "codes.wf").is_file()  # what was trained outlives a result that was not saved
    with pytest.raises(PlanMismatch, match="loss"):
        run(
            original,
            BATCHES,
            spec="Quantize()",
            budget=A_PRICE,
            training=SHORT,
            options=options,
            loss=lambda y, _: y.square().mean(),
        )
    with pytest.raises(PlanMismatch, match="inputs"):
        run(original, [x + 1 for x in BATCHES], spec="Quantize()", budget=A_PRICE, training=SHORT, options=options)


def test_files_of_others_are_not_taken_for_its_own(original, tmp_path) -> None:
    waterfill.compress(original, bits=8).save(tmp_path / "codes.wf")
    with pytest.raises(OutputExists, match="codes.wf"):
        run(original, BATCHES, spec="Quantize()", budget=A_PRICE, options=Options(work=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["codes.wf"]


def test_a_refused_training_leaves_no_folder(original, tmp_path) -> None:
    options = Options(work=tmp_path / "work", steps=QUICK)
    with pytest.raises(BadInput, match="no gradient runs"):
        run(original, BATCHES, spec="Quantize()", budget=A_PRICE, options=options, loss=lambda y, _: y.detach().mean())
    with pytest.raises(BadInput, match="one number"):
        run(original, BATCHES, spec="Quantize()", budget=A_PRICE, options=options, loss=lambda y, _: y.mean(1))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadInput, match=r"Budget\(bits=2\)"):
        run(original, BATCHES, budget=2.0)


def test_rows_that_are_normalized_keep_a_direction_without_data() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(weight_norm(nn.Linear(64, 96)), nn.ReLU(), nn.Linear(96, 10))
    with torch.no_grad():
        model[0].parametrizations.weight.original1.mul_(torch.logspace(0, -3, 96)[:, None])
    restored = waterfill.compress(model, bits=4).install(copy.deepcopy(model))
    x = torch.randn(64, 64)
    with torch.no_grad():
        assert (restored(x) - model(x)).norm() / model(x).norm() < 0.2
