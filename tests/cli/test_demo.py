"""The demo: its baseline by hand, one short run, and what it says without its data."""

import sys

import pytest
import torch

from waterfill.cli.commands.demo import digits
from waterfill.cli.exit_codes import Exit


def test_plain_rounding_by_hand():
    weight = torch.zeros(2, 70)
    weight[0, :4] = torch.tensor([7.0, 2.4, -3.6, -7.0])
    weight[1, 69] = -0.5
    state = {"weight": weight, "bias": torch.tensor([0.1, 0.2]), "count": torch.tensor(3)}
    rounded, size = digits.plainly_rounded(state, 4)
    assert rounded["weight"][0, :4].tolist() == [7, 2, -4, -7]
    assert rounded["weight"][1, 69] == pytest.approx(-0.5, rel=1e-3) and int((rounded["weight"] != 0).sum()) == 5
    assert rounded["bias"].equal(state["bias"].half().float()) and rounded["count"] == 3
    assert size == 70 + 2 * 2 * 2 + 2 * 2 + 8  # codes, scales, bias, count


def test_the_network_is_small_but_not_tiny():
    count = sum(p.numel() for p in digits.network().parameters())
    assert 30_000 < count < 60_000


def test_the_demo_beats_plain_rounding_with_fewer_bytes(run, monkeypatch):
    monkeypatch.setattr(digits, "_EPOCHS", 3)
    ran = run("demo", "--bits", "3", "--json", "--quiet")
    assert ran.code == 0 and ran.err == ""
    whole, ours, plain = ran.json["rows"]
    assert whole["ratio"] == 1 and whole["error"] == 0 and whole["accuracy"] > 0.5
    assert ours["bytes"] <= plain["bytes"] and ours["error"] < plain["error"]
    assert ours["bits"] <= 3


def test_the_demo_says_what_it_needs(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    ran = run("demo", "--quiet")
    assert ran.code == Exit.USAGE and "waterfill[demo]" in ran.err
