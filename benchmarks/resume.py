"""Training that is killed again and again, on two processes: it ends with the same bytes, and leaves nothing.

`waterfill learn` trains LeNet-300-100 in compressed form, on a part of the digits, with the environment that torchrun
gives its processes (whose own outlive it when it is killed): once undisturbed, then with kills of all processes at
random moments until it ends; the files are compared byte by byte.

    python benchmarks/resume.py [--kills 10] [--method straight-through,lc]
"""

import argparse
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lib.common import CHECKOUT, Table, claim, claims_table, data_folder, finish

SOURCE = """
import sys
sys.path.insert(0, {benchmarks!r})
from pathlib import Path

import torch
from lib.common import data_module
from lib.training_data import training_batches

FOLDER = Path({folder!r})


def network():
    return data_module(FOLDER, "refmodels").LeNet300()


def digits():
    torch.manual_seed(0)  # every run is to see the same digits
    whole = training_batches("LeNet-300-100", FOLDER)
    return [batch for _, batch in zip(range({batches}), whole)]
"""
RATIOS = {"straight-through": "--ratio 40", "lc": "--recipe Codebook(levels=2)+Prune(keep=0.01) --ratio 20"}
KILLS, SEED, BATCHES, RANKS = 10, 0, 200, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=KILLS, help="of each method")
    parser.add_argument("--method", default=",".join(RATIOS), help="methods, separated by commas")
    options = parser.parse_args()
    rows = [row(method, options.kills, data_folder()) for method in options.method.split(",")]
    columns = {
        "method": "",
        "kills": "d",
        "files": "d",
        "kills, % of the time": "",
        "same bytes": "",
        "left over": "d",
    }
    wrong = sum(not alike for *_, alike, _ in rows) + sum(left for *_, left in rows)
    tables = {
        "runs": Table("LeNet-300-100 on two processes, killed at random moments", columns, rows),
        "claims": claims_table([claim("trainings with other bytes, and files left over", wrong, 0, "d", at_most=True)]),
    }
    partial = options.kills != KILLS or options.method != ",".join(RATIOS)
    finish("resume", tables, vars(options), partial=partial, shown=tables)


def row(method: str, kills: int, folder: Path) -> list[object]:
    """Method, kills, files that came of it, when kills came, whether all have the same bytes, and how much is left."""
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        source = SOURCE.format(benchmarks=str(CHECKOUT / "benchmarks"), folder=str(folder), batches=BATCHES)
        (work / "nets.py").write_text(source)
        began = time.monotonic()
        ended(start(work, folder, method, "whole.wf"))
        took = time.monotonic() - began
        chance, when, alike = random.Random(SEED), [], []
        while len(when) < kills or not (work / "killed.wf").exists():
            if (work / "killed.wf").exists():  # whole before a kill came: the next one begins anew
                alike.append(same(work))
                (work / "killed.wf").unlink()
            running = start(work, folder, method, "killed.wf")
            wait = took * chance.uniform(0.3, 0.9)
            if len(when) < kills and killed_after(running, wait):
                when.append(round(100 * wait / took))
            else:
                ended(running)
        alike.append(same(work))
        left = len({path.name for path in work.iterdir()} - {"nets.py", "__pycache__", "whole.wf", "killed.wf"})
        return [method, kills, len(alike), f"{min(when)} to {max(when)}", all(alike), left]


def same(work: Path) -> bool:
    """Whether the disturbed training has ended with the bytes of the other."""
    return (work / "killed.wf").read_bytes() == (work / "whole.wf").read_bytes()


def start(work: Path, folder: Path, method: str, output: str) -> "list[subprocess.Popen[bytes]]":
    """The training, in two processes."""
    words = ["-m", "waterfill", "learn", str(folder / "mnist_lenet300.safetensors"), "--network", "nets:network"]
    words += ["--data", "nets:digits", "--labels", "--epochs", "1", "--method", method, "--quiet", "-o", output]
    words += RATIOS[method].split()
    shared = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(work), *sys.path[1:]]),
        "WORLD_SIZE": str(RANKS),
    }
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            [sys.executable, *words], cwd=work, env=shared | {"RANK": str(rank)}, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in range(RANKS)
    ]  # fmt: skip


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def killed_after(running: "list[subprocess.Popen[bytes]]", seconds: float) -> bool:
    """Whether a training was still at work after so many seconds, and was killed."""
    until = time.monotonic() + seconds
    while any(one.poll() is None for one in running):
        if time.monotonic() >= until:
            for one in running:
                one.kill()
            for one in running:
                one.communicate()
            return True
        time.sleep(0.01)
    return False


def ended(running: "list[subprocess.Popen[bytes]]") -> None:
    """Wait for the end. Raises RuntimeError with the last words of a training that failed."""
    said = [one.communicate()[1] for one in running]
    if any(one.returncode for one in running):
        raise RuntimeError("\n".join(words.decode(errors="replace")[-2000:] for words in said))


if __name__ == "__main__":
    main()
