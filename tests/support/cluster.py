"""A dask cluster of processes on this machine that die when they are told to, and are begun again by a supervisor."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
PACE = 0.1  # seconds between looks


class Cluster:
    """A scheduler and some workers with one thread each. preload: a module that every worker imports."""

    def __init__(self, folder: Path, workers: int = 2, preload: str = "") -> None:
        self.folder, self.preload = folder, preload
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self.names = ["scheduler", *(f"worker-{i}" for i in range(workers))]
        self.running = {name: self.begun(name) for name in self.names}
        self.ended = threading.Event()
        self.supervisor = threading.Thread(target=self.supervise)
        self.supervisor.start()

    def begun(self, name: str) -> "subprocess.Popen[bytes]":
        """A process of this name. Its last words are in `NAME.log`."""
        words = [sys.executable, "-m", f"distributed.cli.dask_{name.partition('-')[0]}", "--no-dashboard"]
        if name == "scheduler":
            words += ["--host", "127.0.0.1", "--port", self.address.rpartition(":")[2]]
        else:
            own = ["--no-nanny", "--nthreads", "1", "--local-directory", str(self.folder / name)]
            words += [self.address, *own, *(["--preload", self.preload] if self.preload else [])]
        paths = [str(CHECKOUT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        settings = {"OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
        environment = os.environ | settings | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def supervise(self) -> None:
        """Begin again what has died, as systemd or a job queue would."""
        while not self.ended.wait(PACE):
            for name, process in list(self.running.items()):
                if process.poll() is not None:
                    self.running[name] = self.begun(name)

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self.running[name].send_signal(signal.SIGKILL)

    def close(self) -> None:
        """End everything."""
        self.ended.set()
        self.supervisor.join()
        for process in self.running.values():
            process.kill()
        for process in self.running.values():
            process.wait()


@contextmanager
def cluster(folder: Path, **options: Any) -> Iterator[Cluster]:
    """A block with a cluster. folder: for its files."""
    folder.mkdir(exist_ok=True)
    made = Cluster(folder, **options)
    try:
        yield made
    finally:
        made.close()


def wait_for(condition: Any, seconds: float = 300.0) -> bool:
    """Whether a condition comes true in this time."""
    until = time.monotonic() + seconds
    while not (true := bool(condition())) and time.monotonic() < until:
        time.sleep(PACE)
    return true
