"""A family of sizes at equal compute and equal bytes: table, best of each budget, and the plot."""

from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
from tests.support.toy_learning import INPUTS, X, Y, accuracy
from torch import nn

import waterfill
from waterfill.errors import BadInput
from waterfill.learn import train_big


def of_width(width: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(width)
        return nn.Sequential(nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, 10))


FAMILY = {"narrow <8>": lambda: of_width(8), "wide": lambda: of_width(64)}


def train(model: nn.Module, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(steps):
        at = 64 * step % len(X)
        optimizer.zero_grad()
        F.cross_entropy(model(X[at : at + 64]), Y[at : at + 64]).backward()
        optimizer.step()


def test_all_sizes_get_the_same_compute_and_the_same_bytes() -> None:
    seen: dict[int, int] = {}

    def counted(model: nn.Module, steps: int) -> None:
        seen[model[0].out_features] = steps
        train(model, steps)

    operations = 2 * 64 * (INPUTS + 10)  # of a unit of width, in one step
    pareto = train_big(
        FAMILY,
        X[:64],
        train=counted,
        compute=40 * 64 * operations,
        budgets=[100, 400, 900],
        compress=lambda net, budget: waterfill.compress(net, size=budget.size),
        measure=accuracy,
    )
    assert seen == {8: 320, 64: 40}
    rows = pareto.table()
    assert [row["budget"] for row in rows] == 2 * [100, 400, 900] and {row["weights"] for row in rows} == {290, 2250}
    assert all(row["size"] is None or row["size"] <= row["budget"] for row in rows)
    assert rows[3]["quality"] is None and set(pareto.best) >= {400, 900}
    best = {row["budget"]: row["quality"] for row in rows if row["best"]}
    assert all(best[row["budget"]] >= row["quality"] for row in rows if row["quality"] is not None)
    picture = ElementTree.fromstring(pareto.plot())
    assert "narrow <8>" in [text.text for text in picture.iter() if text.tag.endswith("text")]


def test_too_little_compute_is_refused() -> None:
    given = {"compress": lambda net, _: waterfill.compress(net), "measure": accuracy, "train": train, "budgets": [900]}
    with pytest.raises(BadInput, match="less than one step of 'wide'"):
        train_big({"wide": FAMILY["wide"]}, X[:64], compute=10, **given)
    with pytest.raises(BadInput, match="at least one network"):
        train_big({}, X[:64], compute=1e9, **given)
