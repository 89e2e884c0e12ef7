"""A larger network that the compressed one imitates while it learns."""

import copy

import pytest
import torch
from tests.support.toy_learning import CLASSES, INPUTS, X, accuracy, net, trained
from torch import nn

from waterfill import Budget, CompressedModel, Options, Steps
from waterfill.errors import BadInput, PlanMismatch
from waterfill.learn import Training, run

QUICK = Options(steps=Steps(stages=0, repair=False))
SHORT = Training(epochs=4, rate=1.5e-2, c_steps=4)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """Of another shape, and better than what it teaches; with dropout, which is to be off."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, 200), nn.ReLU(), nn.Dropout(0.5), nn.Linear(200, CLASSES))
    return trained(20, model).train()


def blobs(made: CompressedModel) -> dict[str, bytes]:
    return {name: bytes(entry.blob) for name, entry in made.entries.items()}


@pytest.mark.parametrize("method", ["straight-through", "lc"])
def test_a_network_that_knows_little_learns_from_its_teacher(teacher, method) -> None:
    original, before = trained(epochs=1), copy.deepcopy(teacher.state_dict())
    how = Training(epochs=12, rate=3e-2, c_steps=2, method=method)
    made = run(original, X.split(16), spec="Quantize()", budget=Budget(bits=3), teacher=teacher, training=how)
    assert accuracy(made.install(net())) > accuracy(original) + 0.05
    assert teacher.training
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_the_model_itself_as_its_teacher_is_the_default() -> None:
    original = trained()
    given = {"spec": "Quantize()", "budget": Budget(bits=2), "training": SHORT, "options": QUICK}
    same = [run(original, X.split(64), **given, **more) for more in ({}, {"teacher": original})]
    assert blobs(same[0]) == blobs(same[1])


def test_a_teacher_that_does_not_fit_is_refused_at_once(teacher) -> None:
    given = {"model": net(), "batches": X.split(64), "budget": Budget(bits=2), "options": QUICK}
    with pytest.raises(BadInput, match=r"\[\[64, 10\]\] cannot be compared with the reference's \[\[64, 3\]\]"):
        run(**given, teacher=nn.Linear(INPUTS, 3))
    with pytest.raises(BadInput, match="is a str; give the network itself"):
        run(**given, teacher="big")
    with pytest.raises(BadInput, match="not heard beside a loss"):
        run(**given, teacher=teacher, loss=lambda outputs, _: outputs.sum())
    with pytest.raises(BadInput, match="features"):
        run(**given, teacher=teacher, training=Training(features=0.3))


def test_snapshots_belong_to_one_teacher(teacher, tmp_path) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(progress) -> None:
        if progress.stage == "learning" and progress.done == 20:
            raise Interrupted

    given = {"model": trained(), "batches": X.split(64), "spec": "Quantize()", "budget": Budget(bits=2)}
    given |= {"training": SHORT}
    with pytest.raises(Interrupted):
        run(**given, teacher=teacher, options=Options(steps=QUICK.steps, work=tmp_path, progress=interrupt))
    with pytest.raises(PlanMismatch, match="teacher"):
        run(**given, options=Options(steps=QUICK.steps, work=tmp_path))
    resumed = run(**given, teacher=teacher, options=Options(steps=QUICK.steps, work=tmp_path))
    assert blobs(resumed) == blobs(run(**given, teacher=teacher, options=QUICK))
