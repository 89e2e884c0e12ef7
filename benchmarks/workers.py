"""A checkpoint of about 1 GB on two dask workers and on two threads of one process: the same bytes, and what it costs.

Both compress the same file in turns. Workers have imported everything before, and so has the other process. Seconds
by the clock are those of a machine that may be busy with other work, to which both sides are exposed alike; seconds of
cores add up all processes: workers, scheduler and caller. A second table kills a worker or the scheduler twenty times.

    python benchmarks/workers.py [--layers 16] [--width 4096] [--rounds 7] [--kills 20]
"""

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from large_file import write_checkpoint
from lib.common import CHECKOUT, Table, claim, claims_table, finish

sys.path.insert(0, str(CHECKOUT))  # for the cluster that dies and rises

LAYERS, WIDTH, ROUNDS, KILLS = 16, 4096, 7, 20
BITS, WORKERS = 4.0, 2
MOST_OVERHEAD = 10.0  # percent
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.nanny.pre-spawn-environ": {"MALLOC_TRIM_THRESHOLD_": 1 << 26, "MALLOC_MMAP_THRESHOLD_": 1 << 25},
}
"""As docs/scale.md advises: what dask does beside the work, and an allocator that keeps what will be used again."""
KILLED_LAYERS, KILLED_WIDTH = 48, 768


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of both, in turns")
    parser.add_argument("--kills", type=int, default=KILLS, help="0 for none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder / "large.safetensors", options.layers, options.width)
        rounds, same = in_turns(folder, options.rounds)
        killed = kills(folder, options.kills) if options.kills else []
    tables, claims = {"rounds": rounds_table(rounds)}, []
    claims.append(claim("other bytes from workers than from threads", float(not same), 0, ".0f", at_most=True))
    for column, what in ((2, "time by the clock"), (4, "time of cores")):
        more = median(row[column] for row in tables["rounds"].rows if row[0] == "dask")
        claims.append(claim(f"overhead of workers in {what}, %", more, MOST_OVERHEAD, ".1f", at_most=True))
    if killed:
        columns = {"killed": "", "times": "d", "jobs": "d", "other bytes": "d", "left over": "d"}
        tables["kills"] = Table("Killed at random moments, and begun again", columns, killed)
        wrong = sum(row[3] + row[4] for row in killed)
        claims.append(claim("other bytes and files left over, after the kills", wrong, 0, ".0f", at_most=True))
    tables["claims"] = claims_table(claims)
    partial = vars(options) != {"layers": LAYERS, "width": WIDTH, "rounds": ROUNDS, "kills": KILLS}
    finish("workers", tables, vars(options), partial=partial, shown=tables)


def in_turns(folder: Path, rounds: int) -> tuple[list[list[Any]], bool]:
    """Rows of side, seconds by the clock and seconds of cores; and whether all files have the same bytes."""
    import dask
    from distributed import LocalCluster

    dask.config.set(QUIET)
    import waterfill

    source, rows, files = folder / "large.safetensors", [], []
    settings = {"n_workers": WORKERS, "threads_per_worker": 1, "dashboard_address": ":0", "memory_limit": 0}
    with LocalCluster(**settings) as machines, waterfill.Dask(machines.scheduler_address, wait=300) as engine:
        busy = clock(machines)

        def run(target: Path, **options: Any) -> None:
            began, used = time.perf_counter(), busy()
            waterfill.compress_file(source, target, bits=BITS, **options)
            rows.append([target.stem, time.perf_counter() - began, busy() - used])
            files.append(target.read_bytes())
            target.unlink()

        write_checkpoint(folder / "small.safetensors", 2, 256)
        for target in ("1.wf", "2.wf"):  # what is imported and kept is there before the clock begins
            waterfill.compress_file(folder / "small.safetensors", folder / target, bits=BITS, engine=engine)
        for _ in range(rounds):
            run(folder / "threads.wf", options=waterfill.Options(threads=WORKERS))
            run(folder / "dask.wf", engine=engine)
    return rows, len(set(files)) == 1


def clock(machines: Any) -> Callable[[], float]:
    """Seconds of cores that this process, in which the scheduler is, and the workers have used."""
    from distributed import Client

    client = Client(machines, set_as_default=False)
    return lambda: time.process_time() + sum(client.run(time.process_time).values())


def rounds_table(rows: list[list[Any]]) -> Table:
    """Each run; with workers, its times relative to the run with threads just before."""
    lines = []
    for before, row in zip([None, *rows], rows, strict=False):
        ratios = [100 * (row[k] / before[k] - 1) for k in (1, 2)] if before and row[0] == "dask" else [None, None]
        lines.append([row[0], row[1], ratios[0], row[2], ratios[1]])
    columns = {
        "work done by": "",
        "seconds": ".1f",
        "more, %": ".1f",
        "seconds of cores": ".1f",
        "more of them, %": ".1f",
    }
    return Table("Two threads of one process, and two dask workers of one thread, in turns", columns, lines)


def kills(folder: Path, count: int) -> list[list[Any]]:
    """Rows of what was killed, how often, in how many jobs, how many of them gave other bytes, and what they left."""
    from tests.support.cluster import cluster

    import waterfill

    write_checkpoint(folder / "killed.safetensors", KILLED_LAYERS, KILLED_WIDTH)
    source, recipe = folder / "killed.safetensors", "Quantize(states=64)"
    waterfill.compress_file(source, folder / "plain.wf", recipe, bits=BITS, options=waterfill.Options(threads=WORKERS))
    wanted, chance = (folder / "plain.wf").read_bytes(), random.Random(0)
    killed: dict[str, int] = {}
    jobs = other = left = 0
    with cluster(folder / "dask", workers=WORKERS) as machines:
        while sum(killed.values()) < count:
            target = folder / f"killed-{jobs}.wf"
            work, over = target.with_name(f"{target.name}.work"), threading.Event()
            killer = threading.Thread(target=kill_some, args=(machines, work, over, killed, (count, chance)))
            killer.start()
            with waterfill.Dask(machines.address, wait=600) as engine:
                waterfill.compress_file(source, target, recipe, bits=BITS, engine=engine)
            over.set()
            killer.join()
            jobs, other, left = jobs + 1, other + (target.read_bytes() != wanted), left + work.exists()
    return [[name, times, jobs, other, left] for name, times in sorted(killed.items())]


def kill_some(machines: Any, work: Path, over: threading.Event, killed: dict[str, int], how: tuple[int, Any]) -> None:
    """Kill one process after the other until a job is over, each when one more weight is finished and at random."""
    count, chance = how
    while sum(killed.values()) < count and not over.is_set():
        before = len(list(work.glob("*.json")))
        while not over.wait(0.05) and len(list(work.glob("*.json"))) <= before:
            pass
        if over.wait(chance.uniform(0, 1)):
            return
        name = chance.choice(machines.names)
        machines.kill(name)
        killed[name] = killed.get(name, 0) + 1


if __name__ == "__main__":
    main()
