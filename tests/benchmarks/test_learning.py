"""The benchmarks of learning and of single errors: what they plan, and what they claim of what they found."""

from dataclasses import replace

import pytest
import torch
from tests.support.scripts import script


def test_every_training_is_planned_once_with_what_stands_beside_it() -> None:
    learning = script("learning")
    jobs = learning.plan()
    assert len(set(jobs)) == len(jobs)
    trained = {(job.network, job.ratio) for job in jobs if job.method == "straight-through"}
    for method in (learning.PLAIN, learning.ROUNDED):
        assert trained <= {(job.network, job.ratio) for job in jobs if job.method == method}
    assert {job.network for job in jobs} == {job.network for job in jobs if job.method == learning.FLOAT}


def test_claims_are_the_least_mean_error_of_seeds_and_the_share_of_the_loss_that_is_left() -> None:
    learning = script("learning")
    job = learning.Job(learning.LENET, "straight-through", ratio=100.0)
    lstm = learning.Job("LSTM 2x128", learning.FLOAT)
    found = {job: [1, 1.0, 97.5, 0.1, 1.0, ""], replace(job, labels=True): [1, 1.0, 97.9, 0.1, 1.0, ""]}
    found |= {lstm: [None, None, 2.0, 0.0, 0.0, ""], replace(lstm, method=learning.PLAIN): [1, 16.0, 2.4, 0.1, 1.0, ""]}
    found |= {replace(lstm, method="straight-through"): [1, 16.0, 2.1, 0.1, 1.0, ""]}
    found |= {replace(job, labels=True, seed=1): [1, 1.0, 97.88, 0.1, 1.0, ""]}
    rows = learning.claims(found)
    assert [row[1] for row in rows] == ["2.11", "0.25"] and all(row[3] for row in rows)


@pytest.mark.parametrize("over", [(), (0,), (1,)])
def test_errors_of_every_shape_have_the_same_geometric_mean(over) -> None:
    probes = script("probes")
    value = torch.randn(400, 300) * torch.logspace(0, 1, 300) * torch.logspace(0, 1, 400)[:, None]
    errors = probes.disturbed("w", value, 0.1, over) - value
    by_line = errors.square().mean(over).sqrt() if over else errors.square().mean().sqrt()
    assert float(by_line.log().mean().exp() / value.square().mean().sqrt()) == pytest.approx(0.1, rel=0.02)
    if over:
        sizes = value.square().mean(over).sqrt()
        assert torch.corrcoef(torch.stack([by_line.log(), sizes.log()]))[0, 1] > 0.99


def test_matrices_are_of_a_kind_whatever_block_they_are_in() -> None:
    state = {f"layers.{i}.w1.weight": torch.ones(2, 2) for i in range(3)} | {"fc1.weight": torch.ones(2, 2)}
    assert script("probes").kinds(state) == {
        "layers.*.w1.weight": list(state)[:3],
        "fc1.weight": ["fc1.weight"],
    }
