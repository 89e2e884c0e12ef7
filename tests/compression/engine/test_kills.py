"""Workers and schedulers that are killed again and again: the same bytes, and a weight that kills is named."""

import random
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.support.cluster import Cluster, cluster, wait_for

import waterfill
from waterfill import Options
from waterfill.errors import EngineError

pytest.importorskip("distributed", reason="needs dask: pip install 'waterfill[distributed]'")
pytestmark = pytest.mark.slow
KILLS = 20


def checkpoint(path: Path, layers: int = 40) -> Path:
    draw = torch.Generator().manual_seed(5)
    sizes = [(256 + 16 * i, 512) for i in range(layers)]
    save_file({f"layers.{i}.weight": torch.randn(size, generator=draw) for i, size in enumerate(sizes)}, path)
    return path


class Killer(threading.Thread):
    """Kills one process of a cluster after the other: each time when a few more weights are finished."""

    def __init__(self, victims: Cluster, work: Path) -> None:
        super().__init__(daemon=True)
        self.victims, self.work, self.killed, self.over = victims, work, [], threading.Event()

    def finished(self) -> float:
        """When the last weight was finished."""
        return max((note.stat().st_mtime for note in self.work.glob("[0-9]*.json")), default=0.0)

    def run(self) -> None:
        chance = random.Random(0)
        for _ in range(KILLS):
            before = self.finished()
            wait_for(lambda before=before: self.over.is_set() or self.finished() > before)
            if self.over.wait(chance.uniform(0, 1)):
                return
            name = chance.choice(self.victims.names)
            self.victims.kill(name)
            self.killed.append(name)


def test_twenty_kills_of_workers_and_schedulers_give_the_same_bytes(tmp_path):
    source, recipe = checkpoint(tmp_path / "m.safetensors"), "Quantize(states=64)"
    waterfill.compress_file(source, tmp_path / "plain.wf", recipe, bits=3, options=Options(threads=1))
    killed: list[str] = []
    with cluster(tmp_path / "dask") as machines:
        while len(killed) < KILLS:
            target = tmp_path / f"{len(killed)}.wf"
            killer = Killer(machines, target.with_name(f"{target.name}.work"))
            with waterfill.Dask(machines.address, wait=120) as engine:
                killer.start()
                waterfill.compress_file(source, target, recipe, bits=3, engine=engine)
            killer.over.set()
            killer.join()
            killed += killer.killed
            assert target.read_bytes() == (tmp_path / "plain.wf").read_bytes()
            assert not target.with_name(f"{target.name}.work").exists()
    assert {"scheduler", "worker-0", "worker-1"} == set(killed)


def test_a_weight_that_kills_its_workers_is_named_and_the_others_are_kept(tmp_path):
    pytest.importorskip("tests.support.poison")
    tensors = {f"fine.{i}.weight": torch.randn(64, 64) for i in range(6)} | {"bad.weight": torch.randn(64, 65)}
    save_file(tensors, tmp_path / "m.safetensors")
    source, target = tmp_path / "m.safetensors", tmp_path / "m.wf"
    with (
        cluster(tmp_path / "dask", preload="tests.support.poison") as machines,
        waterfill.Dask(machines.address, wait=120) as engine,
        pytest.raises(EngineError, match="no process survives the weight 'bad.weight' of .*m.safetensors"),
    ):
        waterfill.compress_file(source, target, "Poison()", price=1e-4, engine=engine)
    assert len(list((tmp_path / "m.wf.work").glob("*.blob"))) == 6
