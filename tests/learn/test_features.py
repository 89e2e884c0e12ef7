"""What networks see inside counts beside what they say, where it can be compared."""

import copy

import pytest
import torch
from torch import Tensor, nn

import waterfill
from waterfill.errors import BadRecipe
from waterfill.learn import Imitation, Training, run
from waterfill.learn.features import stages, watched
from waterfill.learn.loop.objective import Objective


def block(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.Tanh())


class Net(nn.Module):
    """Two blocks in a list, one beside it, and a layer."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block(width), block(width)])
        self.neck = block(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for one in self.blocks:
            x = one(x)
        return self.head(self.neck(x))


def pair() -> tuple[Net, Net, Tensor]:
    torch.manual_seed(0)
    model = Net().eval()
    work = copy.deepcopy(model)
    with torch.no_grad():
        work.blocks[1][0].weight += 0.1
    return model, work, torch.randn(16, 6)


def test_stages_are_the_blocks_of_lists_and_what_holds_several_modules() -> None:
    assert stages(Net()) == ("blocks.0", "blocks.1", "neck")
    assert stages(nn.Sequential(Net())) == ("0.blocks.0", "0.blocks.1", "0.neck")
    assert stages(nn.Linear(2, 2)) == stages(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == ()


def test_the_loss_is_that_of_outputs_and_the_mean_relative_error_of_stages() -> None:
    model, work, x = pair()
    objective = Objective(model, None, None, Training(features=0.5))
    objective.choose_stages(copy.deepcopy(model), x)
    with objective.watching(work):
        found = objective(work, x)
    names = ("blocks.0", "blocks.1", "neck")
    with watched(model, names) as expected, watched(work, names) as own:
        outputs = Imitation()(work(x), model(x))
    errors = [(own[n] - expected[n]).square().sum() / (expected[n] - expected[n].mean()).square().sum() for n in names]
    assert errors[0] == 0 < errors[1]
    torch.testing.assert_close(found, outputs + 0.5 * sum(errors) / 3)
    found.backward()
    assert work.blocks[1][0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())


def test_stages_that_preparation_has_changed_are_left_out() -> None:
    model, work, x = pair()
    objective = Objective(model, None, None, Training(features=1.0))
    objective.choose_stages(work, x)  # its second block, and what comes after, sees something else
    with objective.watching(work):
        found = objective(work, x)
    torch.testing.assert_close(found, Imitation()(work(x), model(x)))


def test_hooks_are_gone_after_the_block_and_a_loss_of_ones_own_stands_alone() -> None:
    model, work, x = pair()
    objective = Objective(model, None, lambda outputs, batch: outputs.square().mean(), Training(features=1.0))
    assert not objective.has_stages
    with objective.watching(work):
        assert objective(work, x) == work(x).square().mean()
    with watched(model, ["neck"]) as seen:
        model(x)
        assert set(seen) == {"neck"}
    assert not any(module._forward_hooks for module in [*model.modules(), *work.modules()])


def test_a_network_is_learned_by_what_it_sees() -> None:
    made = run(
        Net(32),
        list(torch.randn(8, 32, 32)),
        spec="Quantize()",
        budget=waterfill.Budget(bits=4),
        training=Training(epochs=2, features=1.0),
    )
    assert made.bits <= 4
    with pytest.raises(BadRecipe, match="features"):
        Training(features=-1)
