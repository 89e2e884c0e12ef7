"""Calibration of what does not fit in memory at once: pass by pass, kept on disk, gone on from where it was killed."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

import waterfill
from waterfill.calibration.cache import ImportanceCache
from waterfill.compression.options import Steps
from waterfill.compression.task import Task
from waterfill.errors import PlanMismatch

WIDE = """
import sys, torch, waterfill
from pathlib import Path
from torch import nn

model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(4)])
memory = int(sys.argv[1])
found = waterfill.calibrate(model, list(torch.randn(64, 1024).split(32)), memory=memory, cache=Path(sys.argv[2]))
assert len(found) == 8 and found["2.weight"].gram.shape == (1024, 1024)
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024)
"""
MATRIX = 2 * 4 * 1024 * 1024
"""Bytes of the sums of Gram matrices of one layer: two halves, float32."""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.slow
def test_the_peak_is_that_of_one_layer_where_memory_is_short(tmp_path) -> None:
    def peak(memory: int) -> int:
        where = str(tmp_path / str(memory))
        command = [sys.executable, "-c", WIDE, str(memory), where]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert peak(4 * MATRIX) - peak(MATRIX) > 2 * MATRIX


def layers() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*[m for _ in range(5) for m in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 4)).eval()


ONE = 2 * 8 * 32 * 32
BATCHES = list(torch.randn(64, 32, generator=torch.Generator().manual_seed(1)).split(16))


def test_killed_in_a_pass_it_goes_on_with_that_pass(tmp_path) -> None:
    ran = []

    def forward(model, batch):
        ran.append(1)
        if len(ran) == 10:
            raise KeyboardInterrupt
        return model(batch)

    with pytest.raises(KeyboardInterrupt):
        waterfill.calibrate(layers(), BATCHES, memory=ONE, cache=tmp_path, forward=forward)
    found = waterfill.calibrate(layers(), BATCHES, memory=ONE, cache=tmp_path, forward=forward)
    assert len(ran) == 10 + 4 * len(BATCHES)  # of six passes two were finished
    whole = waterfill.calibrate(layers(), BATCHES)
    for name, value in whole.items():
        assert torch.allclose(found[name].diagonal, value.diagonal) and torch.allclose(found[name].rows, value.rows)
        assert value.gram is None or torch.allclose(found[name].gram, value.gram)


def test_compression_from_disk_is_the_same_as_from_memory(tmp_path) -> None:
    model, quick = layers(), partial(waterfill.Options, steps=Steps(stages=0, repair=False))
    kept = waterfill.compress(model, BATCHES, spec="Quantize()", price=1e-3, options=quick())
    for options in (quick(memory=ONE), quick(memory=ONE, cache=tmp_path / "kept")):
        streamed = waterfill.compress(model, BATCHES, spec="Quantize()", price=1e-3, options=options)
        assert {n: e.blob for n, e in streamed.entries.items()} == {n: e.blob for n, e in kept.entries.items()}
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 12


def test_a_cache_of_other_inputs_is_refused(tmp_path) -> None:
    waterfill.calibrate(layers(), BATCHES, cache=tmp_path)
    assert len(waterfill.calibrate(layers(), BATCHES, cache=tmp_path)) == 12
    with pytest.raises(PlanMismatch, match="batches"):
        waterfill.calibrate(layers(), [batch + 1 for batch in BATCHES], cache=tmp_path)


def test_opening_a_cache_reads_no_matrix(tmp_path, monkeypatch) -> None:
    waterfill.calibrate(layers(), BATCHES, cache=tmp_path)
    read = list[str]()
    whole = ImportanceCache._read
    monkeypatch.setattr(ImportanceCache, "_read", lambda cache, name: read.append(name) or whole(cache, name))
    again = waterfill.calibrate(layers(), BATCHES, cache=tmp_path)
    assert len(again) == 12 and not read
    assert again["0.weight"].gram is not None and read == ["0.weight"]


def test_matrices_on_disk_are_not_kept_by_the_weights(tmp_path) -> None:
    found = waterfill.calibrate(layers(), BATCHES, cache=tmp_path)
    work = Task.of(layers(), "Quantize()", found)
    first = next(weight for weight in work.weights if weight.name == "0.weight")
    first.fit(1e-4)
    assert first.curve.at(1e-4).bits > 0 and first.level is not None
    held = [value for value in vars(first).values() if isinstance(value, waterfill.Importance)]
    assert callable(first.importance) and not held and "_kept_importance" not in vars(first)


def test_a_matrix_that_memory_cannot_hold_is_named_in_the_table() -> None:
    made = waterfill.compress(
        layers(), BATCHES, price=1e-3, options=waterfill.Options(memory=ONE - 1, steps=Steps(stages=0, repair=False))
    )
    warned = {row["name"]: row["warning"] for row in made.table()}
    assert "memory" in warned["0.weight"] and not warned["0.bias"]
