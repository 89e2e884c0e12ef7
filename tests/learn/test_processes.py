"""Several processes share the batches; whoever is killed, the same command ends with the same bytes."""

import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.support.toy_learning import X, trained

import waterfill
from waterfill.learn import LC, Schedule

SOURCE = """
from tests.support.toy_learning import X, net


def build():
    return net()


def inputs():
    return list(X.split(64))
"""


ASKED = "learn model.safetensors --bits 2 --network toy:build --data toy:inputs --epochs 6 --rate 0.03 --quiet"


def started(folder: Path, output: str) -> "list[subprocess.Popen[str]]":
    """The command in two processes with the environment that torchrun gives: its own outlive it when it is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = environment(folder) | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    words = [sys.executable, "-m", "waterfill", *ASKED.split(), "-o", output]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(words, cwd=folder, env=shared | {"RANK": rank}, **pipes) for rank in ("0", "1")]


def ended(running: "list[subprocess.Popen[str]]") -> tuple[bool, str]:
    """Whether all went well, and what was said."""
    said = [one.communicate()[1] for one in running]
    return all(one.returncode == 0 for one in running), "\n".join(said)


def environment(folder: Path) -> dict[str, str]:
    checkout = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), checkout]), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_killed_processes_go_on_to_the_same_bytes(tmp_path) -> None:
    (tmp_path / "toy.py").write_text(SOURCE)
    save_file(
        {name: value.contiguous() for name, value in trained().state_dict().items()}, tmp_path / "model.safetensors"
    )
    began = time.monotonic()
    well, said = ended(started(tmp_path, "whole.wf"))
    took = time.monotonic() - began
    assert well, said
    chance = random.Random(0)
    for _ in range(3):
        running = started(tmp_path, "killed.wf")
        time.sleep(took * chance.uniform(0.3, 0.9))
        for one in running:
            one.kill()
        ended(running)
    well, said = ended(started(tmp_path, "killed.wf"))
    if not well and (tmp_path / "killed.wf").is_file():  # it had ended before it was to be killed
        assert "exists" in said
    else:
        assert well, said
    assert (tmp_path / "killed.wf").read_bytes() == (tmp_path / "whole.wf").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {
        "toy.py",
        "model.safetensors",
        "whole.wf",
        "killed.wf",
    }
    assert waterfill.load(tmp_path / "whole.wf").bits <= 2 and torch.isfinite(X).all()


SHARED = """
import gc
import random
import sys
import torch
import torch.distributed as dist
from torch import nn
from tests.support.toy_learning import trained
from waterfill import Budget, Options, Steps
from waterfill.errors import BadInput
from waterfill.learn import LC, Schedule, Training, run
from waterfill.learn.learners.ranks import shared

dist.init_process_group("gloo")
calls = []
found = shared(["a", "b", "c"], lambda name: calls.append(name) or name.encode())
assert found == {"a": b"a", "b": b"b", "c": b"c"} and calls == (["a", "c"] if dist.get_rank() == 0 else ["b"])

def fails(name):
    raise BadInput(f"no {name}")

try:
    shared(["a", "b"], fails)
except BadInput as error:
    assert str(error) == "no a"
lc = LC(trained(), "Codebook(levels=4)", schedule=Schedule(mu=1.0))
lc.c_step()
lc.result().save(sys.argv[1] + str(dist.get_rank()))

class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 8)
    def forward(self, x):
        return self.head((self.a if x[0, 0] > 0 else self.b)(x))

class Jittered:
    def __len__(self):
        return 16
    def __iter__(self):
        for i in range(16):
            x = random.gauss(0, 1) + torch.linspace(-1, 1, 16 * 32).reshape(16, 32)
            x[0, 0] = 1.0 if i % 2 else -1.0
            yield x

torch.manual_seed(0)
model = Experts()
random.seed(dist.get_rank())
for method in ("straight-through", "lc"):
    training = Training(epochs=2, rate=0.1, method=method)
    options = Options(steps=Steps(stages=0, repair=False))
    made = run(model, Jittered(), spec="Quantize()", budget=Budget(bits=6), training=training, options=options)
    made.save(sys.argv[1] + method + str(dist.get_rank()))
try:
    run(model, Jittered(), budget=Budget(bits=6), loss=lambda y, _: y.sum() * (torch.nan if dist.get_rank() else 1.0))
except BadInput as error:
    assert ("nan" if dist.get_rank() else "another process") in str(error)
else:
    raise AssertionError
dist.barrier()
dist.destroy_process_group()
gc.collect()
"""


@pytest.mark.slow
def test_processes_share_the_work_and_all_have_the_whole(tmp_path) -> None:
    (tmp_path / "shared.py").write_text(SHARED)
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = {"env": environment(tmp_path), "capture_output": True, "text": True}
    done = subprocess.run([*ranks, str(tmp_path / "shared.py"), str(tmp_path / "m")], check=False, **given)
    assert done.returncode == 0, done.stderr
    alone = LC(trained(), "Codebook(levels=4)", schedule=Schedule(mu=1.0))
    alone.c_step()
    alone.result().save(tmp_path / "m")
    assert (tmp_path / "m0").read_bytes() == (tmp_path / "m1").read_bytes() == (tmp_path / "m").read_bytes()
    for method in ("straight-through", "lc"):
        assert (tmp_path / f"m{method}0").read_bytes() == (tmp_path / f"m{method}1").read_bytes()
