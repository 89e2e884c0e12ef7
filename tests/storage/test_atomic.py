"""Files that are whole or not there: one writer at a time, no leftovers of the dead, nothing replaced but files."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from waterfill.errors import BadInput, OutputExists
from waterfill.storage import FileReader, FileWriter
from waterfill.storage.atomic import AtomicFile, claimed, remove_leftovers, write_whole
from waterfill.storage.paths import check_source, check_target
from waterfill.storage.work_directory import Journal, temporary_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, pipes and locks as POSIX has them")

WRITING = "from waterfill.storage.atomic import AtomicFile as make; block = make({path!r}, force=True)"
CLAIMING = "from waterfill.storage.atomic import claimed; block = claimed({path!r})"
IN_A_FOLDER = "from waterfill.storage.work_directory import temporary_folder; block = temporary_folder()"


@contextlib.contextmanager
def process(code: str) -> Iterator[subprocess.Popen[str]]:
    """Another process within the block that `code` names; it stays there until it is killed, or told to leave."""
    code = f"{code}\nwith block as found:\n    print(found, flush=True)\n    input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as other:
        assert other.stdout is not None
        other.said = other.stdout.readline().strip()  # type: ignore[attr-defined]
        try:
            yield other
        finally:
            other.kill()


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_second_writer_is_told_and_the_first_goes_on(tmp_path) -> None:
    path = tmp_path / "model.wf"
    with process(WRITING.format(path=str(path))), pytest.raises(OutputExists, match="written by another process"):
        FileWriter(path, force=True).__enter__()
    with FileWriter(path) as first:
        with pytest.raises(OutputExists, match="another process"), FileWriter(path):
            pass
        with FileWriter(tmp_path / "other.wf") as second:
            second.finish({})
        first.add("a", b"whole")
        first.finish({})
    assert names(tmp_path) == ["model.wf", "other.wf"]
    with FileReader(path) as src:
        assert src.blob("a") == b"whole"


def test_an_output_under_way_names_who_is_at_it(tmp_path) -> None:
    path = tmp_path / "model.wf"
    with process(CLAIMING.format(path=str(path))) as other:
        said = rf"model.wf is being written by another process \({other.pid}\)"
        with pytest.raises(OutputExists, match=said), claimed(path):
            pass
        with claimed(tmp_path / "another.wf"):
            pass
    with claimed(path):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [WRITING, CLAIMING])
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(tmp_path, code) -> None:
    (tmp_path / ".waterfill-notes").write_text("mine")
    with process(code.format(path=str(tmp_path / "model.wf"))) as other:
        left = names(tmp_path)
        assert len(left) == 2
        remove_leftovers(tmp_path)
        assert names(tmp_path) == left
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert names(tmp_path) == left
    with FileWriter(tmp_path / "another.wf") as out:
        assert len(names(tmp_path)) == 2
        out.finish({})
    assert names(tmp_path) == [".waterfill-notes", "another.wf"]


def test_a_leftover_of_the_same_target_is_written_over_and_not_appended_to(tmp_path) -> None:
    with process(WRITING.format(path=str(tmp_path / "x"))) as other:
        left = next(tmp_path.iterdir())
        other.kill()
        other.wait()
    left.write_bytes(b"half of a file that never was" * 9)
    with AtomicFile(tmp_path / "x") as out:
        out.file.write(b"all")
        assert out.finish() == 3
    assert (tmp_path / "x").read_bytes() == b"all" and names(tmp_path) == ["x"]


def test_temporary_folders_of_killed_processes_are_removed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "waterfill-thesis").mkdir()
    with process(IN_A_FOLDER) as living, process(IN_A_FOLDER) as dead:
        (Path(dead.said) / "matrix").write_bytes(bytes(1000))
        dead.kill()
        dead.wait()
        assert len(names(tmp_path)) == 3
        with temporary_folder() as own:
            assert set(names(tmp_path)) == {"waterfill-thesis", Path(living.said).name, own.name}
        assert not own.exists() and Path(living.said).exists()


def test_two_jobs_in_one_work_directory_are_refused(tmp_path) -> None:
    with Journal.claim(tmp_path / "work"):
        with pytest.raises(OutputExists, match="another process"), Journal.claim(tmp_path / "work"):
            pass
        journal = Journal.begin(tmp_path / "work", {})
        journal.put(0, b"blob", {})
        journal.remove()
    assert names(tmp_path) == []


@pytest.mark.parametrize("force", [False, True])
def test_nothing_but_a_file_is_replaced(tmp_path, force) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path, said in ((tmp_path / "pipe", "a pipe"), (tmp_path / "link", "a pipe"), (Path("/dev/null"), "a device")):
        with pytest.raises(OutputExists, match=said):
            AtomicFile(path, force=force)
    with pytest.raises(OutputExists, match="folder"):
        check_target(f"{tmp_path}/new/", force)
    with pytest.raises(BadInput, match="does not exist"):
        check_target(tmp_path / "no" / "such", force)
    assert names(tmp_path) == ["link", "pipe"]


def test_what_can_be_read_only_once_is_no_source(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(BadInput, match="not a file"):
            FileReader(path)
    check_source(tmp_path)
    check_source(tmp_path / "nothing")  # another's question


def test_bytes_are_on_disk_before_the_name_is(tmp_path, monkeypatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append("folder" if os.path.samestat(os.fstat(handle), os.stat(tmp_path)) else "file")
        sync(handle)

    def replaced(before: Path, after: Path) -> None:
        done.append("name")
        replace(before, after)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_whole(tmp_path / "x", b"bytes")
    assert done == ["file", "name", "folder"] and names(tmp_path) == ["x"]


def test_without_locks_files_are_written_and_nothing_is_removed(tmp_path, monkeypatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / f".waterfill-{'0' * 16}.tmp").write_bytes(b"whose?")
    monkeypatch.setattr("fcntl.flock", unknown)
    with claimed(tmp_path / "x"), AtomicFile(tmp_path / "x") as one, AtomicFile(tmp_path / "x", force=True) as two:
        one.file.write(b"one")
        two.file.write(b"two")
        two.finish()
    assert (tmp_path / "x").read_bytes() == b"two" and len(names(tmp_path)) == 2
