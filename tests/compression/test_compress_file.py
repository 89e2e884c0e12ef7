"""compress_file and plan_file: the same as in memory, resumable after any crash, and never a half file."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.support.networks import relative, same, state

import waterfill
from waterfill import Options
from waterfill.compression.allocation.weight import Weight
from waterfill.errors import BadInput, BudgetError, OutputExists, PlanMismatch


@pytest.fixture
def source(tmp_path) -> Path:
    save_file(state(), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "out" / "m.wf"


@pytest.fixture(autouse=True)
def out(tmp_path) -> None:
    (tmp_path / "out").mkdir()


def quality(tensors: dict[str, torch.Tensor]) -> float:
    return sum(relative(t, tensors[name]) ** 2 for name, t in state().items() if t.is_floating_point()) ** 0.5


def fits(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None, error: BaseException | None = None) -> list[str]:
    """Names of the weights as they are fitted; the `fail_at`-th fit raises."""
    names: list[str] = []
    plain = Weight.fit

    def fit(self: Weight, price: float):
        names.append(self.name)
        if fail_at is not None and len(names) == fail_at:
            raise error or KeyboardInterrupt
        return plain(self, price)

    monkeypatch.setattr(Weight, "fit", fit)
    return names


@pytest.mark.parametrize("budget", [{"bits": 3}, {"size": 6000}, {"ratio": 9}, {"price": 1e-4}, {}])
def test_a_file_is_as_good_as_compression_in_memory(source, target, budget):
    summary = waterfill.compress_file(source, target, **budget, options=Options(threads=1))
    memory = waterfill.compress(state(), **budget)
    model = waterfill.load(target)
    assert summary.size == target.stat().st_size == model.size
    assert summary.size == pytest.approx(memory.size, rel=0.02)
    assert quality(model.state_dict()) == pytest.approx(quality(memory.state_dict()), rel=0.05)
    assert summary.ratio == summary.original / summary.size and summary.bits == model.bits
    assert [row["name"] for row in summary.rows] == list(model.entries)
    assert summary.rows[0].keys() == memory.table()[0].keys()
    assert os.listdir(target.parent) == ["m.wf"]


def test_the_bytes_do_not_depend_on_the_threads(source, target, tmp_path):
    files = []
    for threads in (1, 2, 4):
        waterfill.compress_file(source, target, bits=3, options=Options(force=True, threads=threads))
        files.append(target.read_bytes())
    assert files[0] == files[1] == files[2]


def test_lossless_keeps_every_tensor(target, tmp_path):
    odd = {"mask": torch.rand(9, 9) < 0.5, "empty": torch.zeros(0, 4), "nan": torch.full((20, 20), float("nan"))}
    tensors = {**state(), "twin.weight": state()["a.weight"], **odd}
    save_file(tensors, tmp_path / "all.safetensors")
    summary = waterfill.compress_file(tmp_path / "all.safetensors", target, lossless=True)
    assert summary.aliases == {"twin.weight": "a.weight"}
    restored = waterfill.load(target).state_dict()
    assert sorted(restored) == sorted(tensors)
    assert all(same(restored[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("no memory"), OSError(errno.EIO, "broken disk")])
def test_a_killed_job_goes_on_where_it_was(source, target, monkeypatch, error):
    with monkeypatch.context() as patch:
        first = fits(patch, 5, error)
        with pytest.raises(type(error)):
            waterfill.compress_file(source, target, price=1e-4, options=Options(threads=1))
    assert not target.exists() and target.with_name("m.wf.work").is_dir()
    again = fits(monkeypatch)
    waterfill.compress_file(source, target, price=1e-4, options=Options(threads=1))
    assert first[4] in again and not set(first[:4]) & set(again)  # the fourth was finished, the fifth was not
    assert os.listdir(target.parent) == ["m.wf"]
    assert target.read_bytes() == bytes_of(source, target.with_name("whole.wf"), price=1e-4)


def bytes_of(source: Path, target: Path, **budget: float) -> bytes:
    waterfill.compress_file(source, target, **budget, options=Options(threads=1))
    return target.read_bytes()


def test_a_budget_is_met_after_a_crash_too(source, target, monkeypatch):
    with monkeypatch.context() as patch:
        fits(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            waterfill.compress_file(source, target, size=6000, options=Options(threads=1))
    assert 0.98 * 6000 <= waterfill.compress_file(source, target, size=6000, options=Options(threads=1)).size <= 6000


def test_a_damaged_blob_in_the_work_directory_is_made_again(source, target, monkeypatch):
    with monkeypatch.context() as patch:
        fits(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            waterfill.compress_file(source, target, price=1e-4, options=Options(threads=1))
    (target.with_name("m.wf.work") / "0.blob").write_bytes(b"not what was written")
    waterfill.compress_file(source, target, price=1e-4, options=Options(threads=1))
    assert target.read_bytes() == bytes_of(source, target.with_name("whole.wf"), price=1e-4)


def test_another_job_in_the_same_work_directory_is_refused(source, target, monkeypatch):
    with monkeypatch.context() as patch:
        fits(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            waterfill.compress_file(source, target, bits=3)
    for arguments, told in (
        ({"bits": 4}, "budget"),
        ({"spec": "Codebook()", "bits": 3}, "recipe"),
        ({"lossless": True}, "budget"),
    ):
        with pytest.raises(PlanMismatch, match=rf"m.wf.work belongs to another job: its {told} is"):
            waterfill.compress_file(source, target, **arguments)
    save_file({**state(), "more": torch.ones(3)}, source)
    with pytest.raises(PlanMismatch, match="its input is"):
        waterfill.compress_file(source, target, bits=3)


def test_other_values_of_the_same_size_and_time_are_another_job(source, target, monkeypatch):
    with monkeypatch.context() as patch:
        fits(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            waterfill.compress_file(source, target, price=1e-4, options=Options(threads=1))
    before = source.stat()
    changed = state()
    changed["a.weight"][63, 95] += 1
    save_file(changed, source)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.stat().st_size == before.st_size
    with pytest.raises(PlanMismatch, match="tensor 'a.weight' has other values now"):
        waterfill.compress_file(source, target, price=1e-4)
    save_file(state(), source)  # put back, whenever that was
    waterfill.compress_file(source, target, price=1e-4, options=Options(threads=1))
    assert target.read_bytes() == bytes_of(source, target.with_name("whole.wf"), price=1e-4)


def test_texts_of_the_header_are_kept(target, tmp_path):
    texts = {"format": "pt", "rank": "8", "tags": '{"a": "ü"}'}
    save_file(state(), tmp_path / "lora.safetensors", texts)
    for arguments in ({"lossless": True}, {"bits": 4}):
        waterfill.compress_file(tmp_path / "lora.safetensors", target, **arguments, options=Options(force=True))
        assert waterfill.load(target).notes["metadata"] == {"rank": "8", "tags": '{"a": "ü"}'}


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.zeros([1] * 17), "'odd' has 17 dimensions, a file holds at most 16"),
        (torch.zeros(0, 2**41), r"'odd' has the shape \[0, 2199023255552\], and sizes"),
    ],
)
@pytest.mark.parametrize("arguments", [{"lossless": True}, {"bits": 4}])
def test_what_a_file_cannot_hold_is_refused_before_anything_is_written(target, tmp_path, tensor, told, arguments):
    save_file({**state(), "odd": tensor}, tmp_path / "odd.safetensors")
    with pytest.raises(BadInput, match=told):
        waterfill.compress_file(tmp_path / "odd.safetensors", target, **arguments)
    with pytest.raises(BadInput, match=told):
        waterfill.compress({**state(), "odd": tensor}, **arguments)
    assert os.listdir(target.parent) == []


def test_numbers_of_four_bits_are_kept(target, tmp_path):
    numbers = torch.randint(256, (8, 16), dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    save_file({**state(), "packed": numbers}, tmp_path / "m.safetensors")
    waterfill.compress_file(tmp_path / "m.safetensors", target, bits=4)
    assert same(waterfill.load(target).state_dict()["packed"], numbers)


def test_a_full_disk_leaves_no_half_file_and_a_way_to_go_on(source, target, monkeypatch):
    replace = os.replace

    def full(before: Path, after: Path) -> None:
        if Path(after) == target:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(before, after)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(OSError, match="No space left"):
            waterfill.compress_file(source, target, price=1e-4)
    assert os.listdir(target.parent) == ["m.wf.work"]
    again = fits(monkeypatch)
    waterfill.compress_file(source, target, price=1e-4)
    assert again == [] and os.listdir(target.parent) == ["m.wf"]


def test_a_disk_that_fills_up_while_fitting(source, target, monkeypatch):
    written: list[str] = []
    plain = os.replace

    def replace_some(a: object, b: object) -> None:
        written.append(str(b))
        if len(written) == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(a, b)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", replace_some)
        with pytest.raises(OSError, match="No space left"):
            waterfill.compress_file(source, target, price=1e-4, options=Options(threads=1))
    waterfill.compress_file(source, target, price=1e-4, options=Options(threads=1))
    assert target.read_bytes() == bytes_of(source, target.with_name("whole.wf"), price=1e-4)


def test_an_existing_target_is_kept_unless_asked(source, target):
    target.write_bytes(b"precious")
    with pytest.raises(OutputExists, match="m.wf exists"):
        waterfill.compress_file(source, target, bits=3)
    assert target.read_bytes() == b"precious" and os.listdir(target.parent) == ["m.wf"]
    waterfill.compress_file(source, target, bits=3, options=Options(force=True))
    assert sorted(waterfill.load(target).entries) == sorted(state())


def test_a_hopeless_job_leaves_nothing_behind(source, target, tmp_path):
    with pytest.raises(BudgetError, match="the smallest that this recipe can make"):
        waterfill.compress_file(source, target, size=100)
    save_file({"bad.weight": torch.full((20, 20), float("nan"))}, tmp_path / "nan.safetensors")
    with pytest.raises(BadInput, match="'bad.weight' holds 400 values that are NaN"):
        waterfill.compress_file(tmp_path / "nan.safetensors", target, bits=8)
    assert os.listdir(target.parent) == []


def test_a_work_directory_of_ones_own_choice_keeps_what_else_is_in_it(source, target, tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "notes.txt").write_text("mine")
    waterfill.compress_file(source, target, bits=3, options=Options(work=tmp_path / "scratch"))
    assert os.listdir(tmp_path / "scratch") == ["notes.txt"]


def test_progress_is_told_and_ends_whole(source, target):
    told = []
    waterfill.compress_file(source, target, bits=3, options=Options(progress=told.append, threads=2))
    assert told[-1].done == told[-1].total == len(state())


def test_empty_and_missing_sources(target, tmp_path):
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(BadInput, match="holds no tensors"):
        waterfill.compress_file(tmp_path / "none.safetensors", target, bits=3)
    with pytest.raises(BadInput, match="does not exist"):
        waterfill.compress_file(tmp_path / "nowhere.safetensors", target, bits=3)


@pytest.mark.parametrize("budget", [{"bits": 3}, {"size": 6000}, {"price": 1e-4}, {"lossless": True}])
def test_a_plan_predicts_the_size(source, target, budget):
    plan = waterfill.plan_file(source, **budget)
    summary = waterfill.compress_file(source, target, **budget)
    assert plan.size == pytest.approx(summary.size, rel=0.05)
    assert (plan.original, plan.weights) == (summary.original, summary.weights)
    assert [row["name"] for row in plan.rows] == [row["name"] for row in summary.rows]
    for planned, made in zip(plan.rows, summary.rows, strict=True):
        assert planned["bytes"] == pytest.approx(made["bytes"], rel=0.25, abs=16)
    assert plan.memory > 0 and 0 < plan.seconds[0] < plan.seconds[1]


def test_a_plan_writes_nothing(source, tmp_path):
    before = sorted(path.name for path in tmp_path.rglob("*"))
    waterfill.plan_file(source, bits=3)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_options_choose_the_threads():
    assert Options(threads=3).workers == 3
    assert 1 <= Options().workers <= 4
    assert replace(Options(), force=True).force
