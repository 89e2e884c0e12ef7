"""Mixtures of experts: stacks of matrices of which one is taken at a time run packed, others stay dense."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.support.packed import close
from torch import Tensor, nn

import waterfill
from waterfill.runtime import table


class Experts(nn.Module):
    """As transformers has them: parameters [experts, rows, cols]."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(0.1 * torch.randn(3, 70, 64))
        self.down = nn.Parameter(0.1 * torch.randn(3, 64, 70))

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        made = torch.zeros_like(x)
        for expert in chosen.unique():
            own = chosen == expert
            made[own] = F.linear(F.linear(x[own], self.gate[expert]).relu(), self.down[expert])
        return made


class Batched(Experts):
    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        gate = torch.bmm(self.gate[chosen], x[:, :, None])
        return torch.einsum("nij,nj->ni", self.down[chosen], gate.relu()[:, :, 0]) + 0 * self.down.sum()


def made(net: nn.Module, recipe: str = "Quantize()") -> waterfill.CompressedModel:
    return waterfill.compress(net, spec=recipe, price=1e-6)


@pytest.mark.parametrize("recipe", ["Quantize()", "Codebook(levels=6)", "LowRank(rank=4)"])
@torch.no_grad()
def test_an_expert_multiplies_from_its_packed_matrix(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.ModuleList([Experts()]).eval()
    found = made(net, recipe)
    packed, dense = waterfill.pack(found, copy.deepcopy(net)), found.install(copy.deepcopy(net))
    x, chosen = torch.randn(5, 64), torch.tensor([0, 2, 2, 0, 2])
    wanted = dense[0](x, chosen)
    rows = {row["name"]: row for row in table(packed)}
    assert rows.keys() == {"0.gate", "0.down"} and all(row["runs"] == "packed" for row in rows.values())
    assert sum(row["bytes"] for row in rows.values()) < 4 * 2 * 3 * 64 * 70 / 2
    assert torch.equal(packed[0].gate[1].T, dense[0].gate[1].T)
    assert torch.equal(torch.sum(packed[0].gate[1:]), dense[0].gate[1:].sum()) and packed[0].gate.shape == (3, 70, 64)
    y = torch.randn(3, 2, 64)
    assert torch.equal(y @ packed[0].gate.mT, y @ dense[0].gate.mT)
    copied = copy.deepcopy(packed)
    monkeypatch.setattr(type(packed[0].gate), "restored", lambda *_: pytest.fail("restored"))
    monkeypatch.setattr(type(packed[0].gate[0]), "restored", lambda *_: pytest.fail("restored"))
    for model in (packed, copied):
        assert close(model[0](x, chosen), wanted, 1e-3)


@torch.no_grad()
def test_stacks_that_are_taken_whole_stay_dense() -> None:
    torch.manual_seed(0)
    net = nn.ModuleList([Batched()]).eval()
    found = made(net)
    packed, dense = waterfill.pack(found, copy.deepcopy(net)), found.install(copy.deepcopy(net))
    rows = {row["name"]: row for row in table(packed)}
    assert rows["0.gate"]["runs"] == "packed"  # an index takes what it asks for, be it one matrix or many
    assert rows["0.down"]["runs"] == "dense" and "one matrix at a time" in rows["0.down"]["why"]
    x, chosen = torch.randn(4, 64), torch.tensor([0, 2, 1, 0])
    assert close(packed[0](x, chosen), dense[0](x, chosen), 1e-5)
