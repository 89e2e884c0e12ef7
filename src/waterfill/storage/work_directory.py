"""The work directory of a job: every finished blob in a file of its own, so that a killed job can be resumed."""

import contextlib
import json
import os
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waterfill.errors import PlanMismatch
from waterfill.storage.atomic import OWN, claimed, held, remove_leftovers, write_whole

_PLAN = "plan.json"
_OWNER = "owner"
_OWN = re.compile(r"(plan\.json|\d+\.blob|\d+\.json)(\.tmp)?|\d+-[0-9a-f]{16}\.staged")


@dataclass(frozen=True)
class Journal:
    """A folder with a plan and the blobs finished under it; a process that works on it holds `claim`."""

    folder: Path

    @classmethod
    def begin(cls, folder: Path, plan: Mapping[str, Any]) -> "Journal":
        """Open or go on with a work directory. Raises PlanMismatch, naming the difference, if it is another job's."""
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        journal = cls(folder)
        stored = journal._read(_PLAN)
        if stored is None:
            journal._write(_PLAN, json.dumps(plan).encode())
            return journal
        known = _object(stored)
        plan_now = json.loads(json.dumps(plan))
        for key in sorted({*known, *plan_now}):
            if known.get(key) != plan_now.get(key):
                raise PlanMismatch(
                    f"{folder} belongs to another job: its {key} is {_short(known.get(key))}, "
                    f"now it is {_short(plan_now.get(key))}. Finish that job, or delete the folder to begin anew"
                )
        return journal

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a folder is the work directory of a job."""
        return (folder / _PLAN).is_file()

    @staticmethod
    @contextlib.contextmanager
    def claim(folder: Path) -> Iterator[None]:
        """A block in which no other process works in a folder. Raises OutputExists if one does."""
        folder.mkdir(parents=True, exist_ok=True)
        with claimed(folder / _PLAN):
            yield

    def finished(self, count: int) -> dict[int, dict[str, Any]]:
        """Notes of the blobs, of `count` possible ones, that are there and whole."""
        notes = {}
        for i in range(count):
            text, blob = self._read(f"{i}.json"), self._read(f"{i}.blob")
            if text is None or blob is None:
                continue
            note = _object(text)
            if note.get("crc") == zlib.crc32(blob):
                notes[i] = note | {"bytes": len(blob)}
        return notes

    def put(self, i: int, blob: bytes, note: Mapping[str, Any]) -> None:
        """Keep a finished blob, in place of an earlier one."""
        self._write(f"{i}.blob", blob)
        self._write(f"{i}.json", json.dumps({**note, "crc": zlib.crc32(blob)}).encode())

    def plan_checksum(self) -> int | None:
        """A checksum of the plan, by which other machines know the folder; None where there is no plan."""
        plan = self._read(_PLAN)
        return None if plan is None else zlib.crc32(plan)

    def stage(self, i: int, blob: bytes, price: float) -> str:
        """Write a blob beside those that are finished, to be adopted; the name of its file.

        Any process may do so, also several at a time: the same weight at the same price has the same blob.
        """
        name = self.staged(i, price)
        self._write(name, blob)
        return name

    @staticmethod
    def staged(i: int, price: float) -> str:
        """The name of the file of a staged blob."""
        return f"{i}-{struct.pack('>d', price).hex()}.staged"

    def adopt(self, i: int, note: Mapping[str, Any], staged: str) -> None:
        """Keep a staged blob in place of an earlier one. note: with the "crc" of the blob.

        Nothing is read, and the note not flushed: one that a power cut spoils only costs a fit. Raises
        FileNotFoundError where there is no such blob.
        """
        os.replace(self.folder / staged, self.folder / f"{i}.blob")
        (self.folder / f"{i}.json").write_text(json.dumps(dict(note)), encoding="utf-8")

    def blob(self, i: int) -> bytes:
        """A blob that was put."""
        return (self.folder / f"{i}.blob").read_bytes()

    def remove(self) -> None:
        """Delete what belongs to the job, and the folder unless something else is in it: the job is done."""
        for file in self.folder.iterdir():
            if _OWN.fullmatch(file.name) or OWN.fullmatch(file.name):
                file.unlink()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, name: str, data: bytes) -> None:
        write_whole(self.folder / name, data)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for the length of a block. Those that killed processes have left behind are removed first."""
    for left in Path(tempfile.gettempdir()).glob("waterfill-*"):
        _remove_if_left(left)
    with tempfile.TemporaryDirectory(prefix="waterfill-") as name, claimed(Path(name) / _OWNER):
        yield Path(name)


def _remove_if_left(folder: Path) -> None:
    """Remove a temporary folder of this user if it holds a lock that no process has."""
    with contextlib.suppress(OSError):
        if folder.is_symlink() or not hasattr(os, "geteuid") or folder.stat().st_uid != os.geteuid():
            return
        locks = [file for file in folder.iterdir() if OWN.fullmatch(file.name) and file.suffix == ".lock"]
        free = [held(lock) for lock in locks]
        if free and None not in free:
            shutil.rmtree(folder, ignore_errors=True)
        for file in free:
            if file is not None:
                file.close()


def _object(text: bytes) -> dict[str, Any]:
    """A JSON object; an empty one where the text is damaged."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
