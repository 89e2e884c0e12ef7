"""`compress --engine`: what does not go together, what is not there, and the same bytes from two workers."""

import sys

import pytest

from waterfill.cli.exit_codes import Exit
from waterfill.compression.engine import dask

NOWHERE = "tcp://127.0.0.1:9"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--engine", "dask"), "give both"),
        (("--scheduler", NOWHERE), "give both"),
        (("--engine", "dask", "--scheduler", NOWHERE, "--threads", "2"), "--threads are those of this machine"),
        (("--engine", "dask", "--scheduler", NOWHERE, "--data", "nets:inputs"), "without inputs"),
        (("--engine", "ray", "--scheduler", NOWHERE), "invalid choice: 'ray'"),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(run, checkpoint, arguments, told):
    ran = run("compress", checkpoint, "--bits", "3", *arguments)
    assert ran.code == Exit.USAGE and told in ran.err and ran.out == ""


def test_without_the_extra_it_is_named(run, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    ran = run("compress", checkpoint, "--engine", "dask", "--scheduler", NOWHERE)
    assert ran.code == Exit.NO_MACHINES and "pip install 'waterfill[distributed]'" in ran.err


@pytest.mark.parametrize(("scheduler", "told"), [("nonsense", "no address of a scheduler"), (NOWHERE, "answers at")])
def test_a_scheduler_that_is_not_there_is_named_soon(run, checkpoint, monkeypatch, scheduler, told):
    pytest.importorskip("distributed", reason="needs dask: pip install 'waterfill[distributed]'")
    monkeypatch.setattr(dask, "WAIT", 1.0)
    ran = run("compress", checkpoint, "--engine", "dask", "--scheduler", scheduler)
    assert ran.code == Exit.NO_MACHINES and scheduler in ran.err and told in ran.err
    assert not checkpoint.with_suffix(".wf").exists()


def test_two_workers_give_the_same_bytes(run, checkpoint, tmp_path):
    """A cluster within this process: what it takes to begin others is for the slow tests."""
    distributed = pytest.importorskip("distributed", reason="needs dask: pip install 'waterfill[distributed]'")
    out = tmp_path / "threads.wf", tmp_path / "dask.wf"
    assert run("compress", checkpoint, "--price", "1e-4", "-o", out[0]).code == Exit.OK
    settings = {"processes": False, "dashboard_address": ":0", "threads_per_worker": 1, "protocol": "tcp://"}
    with distributed.LocalCluster(n_workers=2, **settings) as machines:
        address = machines.scheduler_address
        ran = run("compress", checkpoint, "--price", "1e-4", "-o", out[1], "--engine", "dask", "--scheduler", address)
    assert ran.code == Exit.OK, ran.err
    assert out[0].read_bytes() == out[1].read_bytes()
