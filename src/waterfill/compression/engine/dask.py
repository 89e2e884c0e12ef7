"""Pieces on the workers of a `dask.distributed` scheduler; the extra `[distributed]`.

Workers may come, go and die, and so may the scheduler: what is lost with them is sent again.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Self

from waterfill.compression.engine.engine import Lost, answer
from waterfill.errors import EngineError

if TYPE_CHECKING:
    from distributed import Client, Future

WAIT = 10.0
"""Seconds for a scheduler and a first worker, unless said otherwise."""
_PAUSE = 0.5  # seconds between looks at a cluster that says nothing
_RUNNING = "running"  # the status of a client with a scheduler
_GATHERED = 256  # answers fetched at a time
_ANSWER = 10.0  # seconds for a scheduler to say what workers there are
_TROUBLE = (OSError, TimeoutError, RuntimeError)  # of a client whose scheduler is gone


class Dask:
    """An engine: the workers of a dask scheduler.

    Every worker needs waterfill, in the version that runs here, and has to see the checkpoint and the folder of the
    output at the same places. A worker fits as many weights at a time as it has threads.

    Args:
        scheduler: its address, such as "tcp://10.0.0.1:8786".
        wait: seconds for the scheduler to answer, and for a first worker, to begin with; 10 where it is None.
        patience: seconds without a scheduler or without a worker, later, after which it is given up.

    Raises:
        EngineError: no scheduler or no worker, a worker with another version, or no dask here.

    Example:
        >>> with waterfill.Dask("tcp://10.0.0.1:8786") as engine:
        ...     waterfill.compress_file("checkpoint", "small.wf", bits=3, engine=engine)
    """

    def __init__(self, scheduler: str, *, wait: float | None = None, patience: float = 300.0) -> None:
        self._scheduler, self._patience = scheduler, patience
        self._client = self._connected(WAIT if wait is None else wait)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the scheduler; it and its workers stay."""
        _closed(self._client)

    @property
    def slots(self) -> int:
        """Threads of all workers."""
        return max(1, sum(self._workers().values()))

    def answers(self, pieces: Sequence[str]) -> Iterator[tuple[int, str | Lost]]:
        """The answers as they come. Raises EngineError where there is no scheduler, or no worker, for too long."""
        left = dict(enumerate(pieces))
        while left:
            if self._client.status != _RUNNING:
                self.close()
                self._client = self._connected(self._patience)
            yield from self._until_lost(left)

    def _until_lost(self, left: dict[int, str]) -> Iterator[tuple[int, str | Lost]]:
        """Answers to the pieces that are left, which are taken away, until all have come or the scheduler is gone."""
        client, told = self._client, SimpleQueue[tuple[int, Any]]()
        waiting: dict[int, Future] = {}
        try:
            names = [f"waterfill-{time.time_ns():x}-{i}" for i in left]
            waiting.update(zip(left, client.map(answer, list(left.values()), key=names, pure=False), strict=True))
            for i, future in waiting.items():
                future.add_done_callback(lambda done, i=i: told.put((i, done)))
            seen = time.monotonic()  # of a sign of life
            while left and client.status == _RUNNING:
                ready = _next(told)
                if ready or self._workers():
                    seen = time.monotonic()
                elif time.monotonic() - seen > self._patience:
                    raise EngineError(self._nobody(self._patience))
                for i, found in _results(client, ready):
                    del left[i], waiting[i]
                    yield i, found
                if any(future.status in ("cancelled", "lost") for i, future in ready if i in left):
                    return  # its scheduler is another one now
        finally:
            with contextlib.suppress(Exception):  # there may be nobody to tell
                client.cancel(list(waiting.values()), force=True)

    def _workers(self) -> dict[str, int]:
        """Threads by the address of a worker; none while the scheduler does not answer."""
        try:
            return _threads(self._client)
        except _TROUBLE:
            return {}

    def _connected(self, seconds: float) -> "Client":
        """A client of the scheduler with at least one worker, all of this version. Raises EngineError."""
        try:
            from distributed import Client
        except ImportError as error:
            raise EngineError("the engine Dask needs dask: pip install 'waterfill[distributed]'") from error
        until, client = time.monotonic() + seconds, None
        while True:
            left = until - time.monotonic()
            try:
                client = client or Client(self._scheduler, timeout=max(0.5, left), set_as_default=False)
                if _threads(client):
                    _check_versions(client)
                    return client
                trouble = EngineError(self._nobody(seconds))
            except ValueError as error:
                raise EngineError(
                    f"{self._scheduler!r} is no address of a scheduler, such as tcp://host:8786"
                ) from error
            except _TROUBLE as error:
                _closed(client)
                client = None
                trouble = EngineError(
                    f"no dask scheduler answers at {self._scheduler} ({error}); start one there with `dask scheduler`, "
                    "and check address and port"
                )
            except EngineError:
                _closed(client)
                raise
            if left <= 0:
                _closed(client)
                raise trouble
            time.sleep(min(_PAUSE, left))

    def _nobody(self, seconds: float) -> str:
        return (
            f"the dask scheduler at {self._scheduler} has had no workers for {seconds:.0f} s; start some with "
            f"`dask worker {self._scheduler}`; finished weights are kept, and the same call goes on from them"
        )


def _threads(client: "Client") -> dict[str, int]:
    """Threads by the address of a worker."""
    return dict(client.sync(client.scheduler.ncores, callback_timeout=_ANSWER))


def _check_versions(client: "Client") -> None:
    """Raise EngineError, naming the first of them, if there are workers without waterfill or with another one."""
    own = metadata.version("waterfill")
    for worker, found in client.run(metadata.version, "waterfill", on_error="return").items():
        if isinstance(found, metadata.PackageNotFoundError):
            raise EngineError(f"the worker at {worker} has no waterfill; install version {own} there")
        if isinstance(found, str) and found != own:
            raise EngineError(f"the worker at {worker} has waterfill {found}, and here it is {own}; use one of them")


def _closed(client: "Client | None") -> None:
    """Leave a scheduler, whether it is there or not."""
    with contextlib.suppress(Exception):
        if client is not None:
            client.close(timeout=1)


def _next(told: "SimpleQueue[tuple[int, Any]]") -> list[tuple[int, Any]]:
    """Pieces that are done, with their futures; none where nothing happens for a while."""
    ready = []
    with contextlib.suppress(Empty):
        ready.append(told.get(timeout=_PAUSE))
        while len(ready) < _GATHERED:
            ready.append(told.get_nowait())
    return ready


def _results(client: "Client", ready: list[tuple[int, Any]]) -> list[tuple[int, str | Lost]]:
    """What came of pieces; nothing of those that are cancelled or lost."""
    finished = [(i, future) for i, future in ready if future.status == "finished"]
    failed = [(i, future) for i, future in ready if future.status == "error"]
    try:
        texts = client.gather([future for _, future in finished])
    except _TROUBLE:
        return []
    return [(i, text) for (i, _), text in zip(finished, texts, strict=True)] + [
        (i, Lost(_why(future.exception()))) for i, future in failed
    ]


def _why(error: BaseException) -> str:
    """The reason of a failure in words."""
    return str(error) or type(error).__name__
