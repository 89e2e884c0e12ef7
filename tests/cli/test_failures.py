"""Every exit code, and that the message on standard error is short, useful and no traceback."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from waterfill.cli.exit_codes import Exit
from waterfill.errors import NewerFormat


def fails(ran, code: Exit, *words: str) -> None:
    """The command failed in this way and said so: nothing on standard output, no traceback."""
    assert ran.code == code and ran.out == ""
    assert ran.err.startswith("waterfill: error: ") and ran.err.count("\n") <= 2
    assert all(word in ran.err for word in words), ran.err


def raiser(error: BaseException):
    def stand_in(*_: object, **__: object) -> None:
        raise error

    return stand_in


@pytest.fixture
def sources(checkpoint, compressed) -> dict[str, Path]:
    """What each command that writes a file reads."""
    return {"compress": checkpoint, "decompress": compressed}


@pytest.mark.parametrize("command", ["info", "verify", "decompress", "compress", "plan"])
def test_a_missing_file_is_a_usage_error(run, tmp_path, command):
    fails(run(command, tmp_path / "none.wf"), Exit.USAGE, "none.wf", "check the path")


def test_a_folder_is_not_decompressed(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(run("decompress", "."), Exit.USAGE, "a folder; give a .wf file")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--bits", "-1"),
        ("--bits", "nan"),
        ("--bits", "2", "--size", "3MB"),
        ("--size", "3 apples"),
        ("--size", "0"),
        ("--lossless", "--ratio", "2"),
        ("--threads", "0"),
        ("--budget", "2"),
    ],
)
def test_arguments_without_meaning_are_usage_errors(run, checkpoint, arguments):
    ran = run("plan", checkpoint, *arguments)
    assert ran.code == Exit.USAGE and ": error: " in ran.err


def test_a_bad_recipe_is_a_usage_error_that_names_the_place(run, checkpoint, tmp_path):
    ran = run("compress", checkpoint, "-o", tmp_path / "x.wf", "--recipe", "Quantise()")
    fails(ran, Exit.USAGE, "character 1", "Quantize")


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_an_existing_output_is_kept(run, sources, tmp_path, command):
    out = tmp_path / "taken"
    out.write_text("mine")
    fails(run(command, sources[command], "-o", out), Exit.OUTPUT_EXISTS, "--force")
    assert out.read_text() == "mine"
    assert run(command, sources[command], "-o", out, "--force").code == Exit.OK
    assert out.read_bytes()[:4] != b"mine"


@pytest.mark.parametrize("command", ["info", "decompress"])
def test_a_damaged_input_is_corrupt(run, compressed, tmp_path, command):
    damaged = tmp_path / "damaged.wf"
    damaged.write_bytes(compressed.read_bytes()[:-3])
    fails(run(command, damaged), Exit.CORRUPT_INPUT, "damaged.wf")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.wf"]


def test_values_that_are_not_finite_are_refused_by_name(run, tmp_path):
    save_file({"layer.weight": torch.full((16, 16), float("nan"))}, tmp_path / "model.safetensors")
    ran = run("compress", tmp_path / "model.safetensors", "--price", "0.01")
    fails(ran, Exit.CORRUPT_INPUT, "layer.weight", "--lossless")
    assert not (tmp_path / "model.wf").exists()


def test_a_newer_format_is_told_from_damage(run, compressed, monkeypatch):
    monkeypatch.setattr("waterfill.cli.commands.look.info.FileReader", raiser(NewerFormat("use a newer release")))
    fails(run("info", compressed), Exit.CORRUPT_INPUT, "newer release")


@pytest.mark.parametrize("bit", [0, 9, 77])
def test_verify_fails_for_every_flipped_bit_it_is_shown(run, compressed, tmp_path, bit):
    data = bytearray(compressed.read_bytes())
    data[len(data) // 3 + bit // 8] ^= 1 << bit % 8
    (tmp_path / "flipped.wf").write_bytes(data)
    fails(run("verify", tmp_path / "flipped.wf"), Exit.VERIFY_FAILED, "checksum")


def test_verify_fails_against_another_model(run, compressed, checkpoint, tmp_path):
    other = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.ones(3)}, other)
    fails(run("verify", compressed, "--against", other), Exit.VERIFY_FAILED, "head.")
    lossless = tmp_path / "exact.wf"
    assert run("compress", checkpoint, "--lossless", "-o", lossless).code == Exit.OK
    changed = load_file(checkpoint)
    changed["conv.weight"][0, 0, 0, 0] += 1
    save_file(changed, other)
    fails(run("verify", lossless, "--against", other), Exit.VERIFY_FAILED, "conv.weight", "bit for bit")


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_a_full_disk_is_told_and_leaves_no_half_file(run, sources, tmp_path, monkeypatch, command):
    out = tmp_path / "out"
    monkeypatch.setattr(os, "fsync", raiser(OSError(errno.ENOSPC, "No space left on device")))
    fails(run(command, sources[command], "-o", out), Exit.DISK_FULL, "disk is full")
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_too_little_memory_is_told_with_a_way_on(run, checkpoint, monkeypatch, error):
    monkeypatch.setattr("waterfill.compression.file.plan_file", raiser(error))
    fails(run("plan", checkpoint), Exit.OUT_OF_MEMORY, "--threads 1")


def test_a_budget_that_cannot_be_met_is_told_and_leaves_nothing_in_the_way(run, checkpoint, tmp_path):
    out = tmp_path / "out.wf"
    fails(run("compress", checkpoint, "--size", "30", "-o", out), Exit.BUDGET_NOT_MET, "30 bytes")
    assert not out.exists()
    assert run("compress", checkpoint, "--size", "2kB", "-o", out).code == Exit.OK


def test_the_work_directory_of_another_job_is_refused(run, checkpoint, tmp_path):
    work = tmp_path / "out.wf.work"
    work.mkdir()
    (work / "plan.json").write_text(json.dumps({"input": "another"}))
    fails(run("compress", checkpoint, "--bits", "3", "-o", tmp_path / "out.wf"), Exit.PLAN_MISMATCH, "out.wf.work")


def test_an_interruption_has_the_code_that_shells_expect(run, checkpoint, monkeypatch):
    monkeypatch.setattr("waterfill.compression.file.plan_file", raiser(KeyboardInterrupt()))
    fails(run("plan", checkpoint), Exit.INTERRUPTED, "interrupted")


def test_what_was_not_foreseen_is_told_and_traced_only_on_demand(run, checkpoint, monkeypatch):
    monkeypatch.setattr("waterfill.compression.file.plan_file", raiser(ZeroDivisionError("odd\x1b[2J")))
    fails(run("plan", checkpoint), Exit.UNEXPECTED, "ZeroDivisionError", "--debug", r"odd\x1b")
    traced = run("plan", checkpoint, "--debug")
    assert traced.code == Exit.UNEXPECTED and "Traceback" in traced.err


def test_what_is_read_is_never_the_output(run, sources):
    for command, source in sources.items():
        before, options = source.read_bytes(), ("--bits", "4") if command == "compress" else ()
        fails(run(command, source, *options, "-o", source, "--force"), Exit.USAGE, "would be lost")
        assert source.read_bytes() == before


@pytest.mark.parametrize(
    "arguments", [("compress", "--bits", "x"), ("limits", "--bits", "4,x"), ("evaluate", "--speed", "0")]
)
def test_numbers_that_are_none_are_named_without_our_own_names(run, checkpoint, arguments):
    ran = run(arguments[0], checkpoint, *arguments[1:])
    assert (
        ran.code == Exit.USAGE and arguments[2] in ran.err and "invalid _" not in ran.err and "_of value" not in ran.err
    )
