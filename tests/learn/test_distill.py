"""A student of another shape learns what a teacher says, whatever that is; then it is compressed."""

from typing import Any

import pytest
import torch
from tests.support.toy_learning import INPUTS, X_TEST, X, accuracy, trained
from torch import Tensor, nn

import waterfill
from waterfill.errors import BadInput, BadRecipe
from waterfill.learn import Distillation, distill


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return trained()


def student(seed: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(INPUTS, 16), nn.Tanh(), nn.BatchNorm1d(16), nn.Linear(16, 10))


@pytest.mark.parametrize("features", [{}, {"1": "3"}])
def test_a_student_of_another_shape_learns_from_outputs_and_features(teacher, features) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learned = distill(student(), teacher, X.split(64), how=Distillation(epochs=12, rate=1e-2, features=features))
    assert accuracy(learned) > accuracy(student().eval()) + 0.6 and not learned.training
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    small = waterfill.compress(learned, X.split(256), bits=9)
    assert accuracy(small.install(student()).eval()) > accuracy(learned) - 0.05
    assert not any(module._forward_hooks for module in learned.modules())


class Regression(nn.Module):
    """Sequences in, a mapping of values out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.head = nn.GRU(5, width, batch_first=True), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"value": self.head(self.body(x)[0])}


def test_regression_and_sequences_are_no_limit() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        big, small = Regression(24), Regression(8)
        x = torch.randn(128, 12, 5)
        learned = distill(small, big, x.split(32), how=Distillation(epochs=30, rate=1e-2, features={"body": "body"}))
    with torch.no_grad():
        found, expected = learned(x)["value"], big(x)["value"]
    assert float((found - expected).square().mean() / expected.var()) < 0.2


def test_convolutions_of_other_sizes_are_pooled() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        teacher = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        small = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
        said: list[waterfill.Progress] = []
        how = Distillation(epochs=1, features={"0": "0"}, progress=said.append)
        distill(small, teacher, torch.randn(16, 3, 9, 9).split(4), how=how)
    assert [one.done for one in said] == [1, 2, 3, 4]


def test_what_cannot_be_learned_says_so(teacher) -> None:
    batches: Any = X.split(256)
    with pytest.raises(BadInput, match="cannot be compared"):
        distill(nn.Linear(INPUTS, 9), teacher, batches)
    with pytest.raises(BadInput, match="no module 'nowhere'"):
        distill(student(), teacher, batches, how=Distillation(features={"0": "nowhere"}))
    with pytest.raises(BadInput, match="not of the same places"):
        both = nn.Sequential(nn.Unflatten(1, (1, INPUTS)), nn.Flatten(), nn.Linear(INPUTS, 10))
        distill(student(), both, batches, how=Distillation(features={"0": "0"}))
    with pytest.raises(BadInput, match="share parameters"):
        distill(teacher, teacher, batches)
    with pytest.raises(BadInput, match="loss is nan"):
        distill(student(), teacher, batches, how=Distillation(loss=lambda a, _: a.sum() * torch.nan))
    with pytest.raises(BadInput, match="no gradient leads"):
        distill(student().requires_grad_(False), teacher, batches)
    with pytest.raises(BadInput, match="no gradient leads"):
        distill(student(), teacher, batches, how=Distillation(loss=lambda _, b: b.sum()))
    with pytest.raises(BadInput, match=r"seed=.*whole number"):
        distill(student(), teacher, batches, how=Distillation(seed=2**70))
    with pytest.raises(BadRecipe, match="epochs"):
        Distillation(epochs=-1)
    assert X_TEST.shape[1] == INPUTS
