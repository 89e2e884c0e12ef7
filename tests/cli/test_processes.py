"""The command as a process among others: signals, closed streams, pipes, and a second one at the same output."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from waterfill.cli.exit_codes import Exit
from waterfill.report.listing import Listing, read_listing
from waterfill.storage import FileReader
from waterfill.storage.atomic import claimed
from waterfill.storage.work_directory import temporary_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and pipes as POSIX has them")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_and_leaves_nothing(run, checkpoint, tmp_path, monkeypatch, number) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def slow(*_: object, **__: object) -> None:
        with temporary_folder() as folder:
            (folder / "matrix").write_bytes(bytes(99))
            os.kill(os.getpid(), number)
            time.sleep(60)

    monkeypatch.setattr("waterfill.compression.file.plan_file", slow)
    before = signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may ignore it
    try:
        ran = run("plan", checkpoint)
        assert ran.code == 128 + number and f"ended by {number.name}" in ran.err
        assert list(tmp_path.iterdir()) == [] and signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_what_is_to_be_ignored_is(run, compressed, monkeypatch) -> None:
    def hung_up(src: FileReader) -> Listing:
        os.kill(os.getpid(), signal.SIGHUP)
        return read_listing(src)

    monkeypatch.setattr("waterfill.cli.commands.look.info.read_listing", hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("info", compressed).code == Exit.OK
    finally:
        signal.signal(signal.SIGHUP, before)


def test_streams_that_are_closed_hinder_nothing(run, checkpoint, tmp_path) -> None:
    out = tmp_path / "m.wf"
    command = f"{sys.executable} -m waterfill compress {checkpoint} --bits 3 -o {out} <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], check=False).returncode == 0
    assert [file.name for file in tmp_path.iterdir()] == ["m.wf"]
    assert run("verify", out, "--deep").code == Exit.OK


def test_messages_that_nobody_reads_hinder_nothing(compressed) -> None:
    command = f"{sys.executable} -m waterfill info nothing.wf 2> >(true); echo $?"
    ran = subprocess.run(["bash", "-c", f"trap '' PIPE; {command}"], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == str(int(Exit.USAGE))


@pytest.mark.parametrize("command", ["info", "verify", "decompress", "compress", "plan"])
def test_a_pipe_is_no_input(run, tmp_path, command) -> None:
    os.mkfifo(tmp_path / "pipe.wf")
    ran = run(command, tmp_path / "pipe.wf")
    assert ran.code in (Exit.CORRUPT_INPUT, Exit.VERIFY_FAILED) and "is a pipe, not a file" in ran.err


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_outputs_that_are_no_files_or_have_no_folder(run, checkpoint, compressed, tmp_path, command) -> None:
    source = checkpoint if command == "compress" else compressed
    os.mkfifo(tmp_path / "pipe")
    ran = run(command, source, "-o", tmp_path / "pipe", "--force")
    assert ran.code == Exit.OUTPUT_EXISTS and "a pipe" in ran.err
    ran = run(command, source, "-o", tmp_path / "no" / "such")
    assert ran.code == Exit.USAGE and "does not exist; create it" in ran.err
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]


def test_a_second_process_at_the_same_output_is_told(run, checkpoint, tmp_path) -> None:
    with claimed(tmp_path / "m.wf"):
        ran = run("compress", checkpoint, "--bits", "3", "-o", tmp_path / "m.wf")
        assert ran.code == Exit.OUTPUT_EXISTS and f"another process ({os.getpid()})" in ran.err
    assert run("compress", checkpoint, "--bits", "3", "-o", tmp_path / "m.wf").code == Exit.OK
    assert [file.name for file in tmp_path.iterdir()] == ["m.wf"]
