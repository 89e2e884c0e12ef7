"""What a training keeps: networks that are done and snapshots, in a folder from which the same call goes on."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from waterfill.errors import OutputExists, WaterfillError
from waterfill.learn.learners.ranks import by_first, rank_and_ranks
from waterfill.model.compressed import CompressedModel, load
from waterfill.storage.work_directory import Journal, temporary_folder

PLAIN, START, CODES = "plain.wf", "start.wf", "codes.wf"
PHASES = ("codes", "vectors", "plain")
_NETWORKS = (PLAIN, START, CODES)
_SNAPSHOTS = tuple(f"{phase}.safetensors" for phase in PHASES)
_FILES = (*_NETWORKS, *_SNAPSHOTS)


class WorkFolder:
    """The folder of a training, which all processes see; with None nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._first = rank_and_ranks()[0] == 0

    @contextmanager
    def claimed(self, plan: Mapping[str, Any]) -> Iterator[None]:
        """A block in which the folder is that of a training, and of no other process; what was kept goes at its end.

        After an interruption it stays; after an error of ours, of the network or of the batches too, unless nothing was
        trained yet.

        Raises:
            PlanMismatch: it belongs to another training.
            OutputExists: another process works in it, or it holds files of this one's names and no training's plan.
        """
        if self._path is None:
            yield
            return
        with ExitStack() as stack:
            by_first(lambda: self._begin(stack, plan))
            try:
                yield
            except (WaterfillError, RuntimeError, TypeError, ValueError, LookupError, AttributeError):
                if self._first and not any((self._path / name).is_file() for name in _SNAPSHOTS):
                    self._remove()
                raise
            by_first(self._remove)

    def snapshot(self, phase: str) -> Path | None:
        """The file for the snapshots of a phase, one of `PHASES`."""
        return None if self._path is None else self._path / f"{phase}.safetensors"

    def kept(self, name: str, make: Callable[[], CompressedModel]) -> CompressedModel:
        """A network as it was kept under a name, or made by the first process."""
        return _to_all(lambda: self._kept(name, make))

    def together(self, name: str, make: Callable[[], CompressedModel]) -> CompressedModel:
        """A network as it was kept under a name, or made by all processes together."""
        if by_first(lambda: self._path is not None and (self._path / name).is_file()):
            return self.kept(name, make)
        made = make()
        return self.kept(name, lambda: made)

    def _kept(self, name: str, make: Callable[[], CompressedModel]) -> CompressedModel:
        file = None if self._path is None else self._path / name
        if file is not None and file.is_file():
            return load(file)
        made = make()
        if file is not None:
            made.save(file, force=True)
        return made

    def _begin(self, stack: ExitStack, plan: Mapping[str, Any]) -> None:
        assert self._path is not None
        stack.enter_context(Journal.claim(self._path))
        found = [name for name in _FILES if (self._path / name).exists()]
        if found and not Journal.is_in(self._path):
            raise OutputExists(
                f"{self._path} holds {found[0]!r}, which is no training's; move it away, or give another folder"
            )
        Journal.begin(self._path, plan)

    def _remove(self) -> None:
        assert self._path is not None
        for name in _FILES:
            (self._path / name).unlink(missing_ok=True)
        Journal(self._path).remove()


def _to_all(make: Callable[[], CompressedModel]) -> CompressedModel:
    """The network that the first process makes, in all of them."""
    own: list[CompressedModel] = []

    def packed() -> bytes:
        own.append(make())
        if rank_and_ranks()[1] == 1:
            return b""
        with temporary_folder() as folder:
            own[0].save(folder / "network.wf")
            return (folder / "network.wf").read_bytes()

    blob = by_first(packed)
    if own:
        return own[0]
    with temporary_folder() as folder:
        (folder / "network.wf").write_bytes(blob)
        return load(folder / "network.wf")
