"""The work directory: what was finished is found again, whatever was half done is not, and other work is left alone."""

import pytest

from waterfill.errors import PlanMismatch
from waterfill.storage.work_directory import Journal

PLAN = {"input": "abc", "recipe": "Quantize()", "budget": {"bits": 3}}


def test_finished_blobs_are_found_again(tmp_path):
    journal = Journal.begin(tmp_path / "work", PLAN)
    journal.put(0, b"first", {"words": "quantized"})
    journal.put(2, b"third", {"words": "dense"})
    journal.put(2, b"third again", {"words": "sparse"})
    again = Journal.begin(tmp_path / "work", PLAN)
    found = again.finished(4)
    assert {i: (note["words"], note["bytes"]) for i, note in found.items()} == {0: ("quantized", 5), 2: ("sparse", 11)}
    assert again.blob(2) == b"third again"


@pytest.mark.parametrize("name", ["0.blob", "0.json"])
@pytest.mark.parametrize("damage", [None, b"", b"[1]", b"{", b"null", b"\xff\x00"])
def test_what_is_half_there_counts_as_not_done(tmp_path, name, damage):
    journal = Journal.begin(tmp_path, PLAN)
    journal.put(0, b"some bytes", {"words": "quantized"})
    if damage is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(damage)
    assert journal.finished(1) == {}


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({**PLAN, "recipe": "Codebook()"}, r"its recipe is Quantize\(\), now it is Codebook\(\)"),
        ({**PLAN, "budget": {"size": 3}}, "its budget is .*bits.*, now it is .*size"),
        ({**PLAN, "version": "2"}, "its version is None, now it is 2"),
        ({"input": "abc", "recipe": "Quantize()"}, "its budget"),
    ],
)
def test_another_plan_is_refused_and_the_difference_named(tmp_path, other, told):
    Journal.begin(tmp_path, PLAN)
    with pytest.raises(PlanMismatch, match=told):
        Journal.begin(tmp_path, other)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_plan_is_another_plan(tmp_path, damage):
    Journal.begin(tmp_path, PLAN)
    (tmp_path / "plan.json").write_bytes(damage)
    with pytest.raises(PlanMismatch, match="delete the folder"):
        Journal.begin(tmp_path, PLAN)


def test_the_folder_goes_when_the_job_is_done(tmp_path):
    journal = Journal.begin(tmp_path / "deep" / "work", PLAN)
    journal.put(0, b"first", {})
    (journal.folder / "1.blob.tmp").write_bytes(b"half")
    journal.remove()
    assert list((tmp_path / "deep").iterdir()) == []


def test_files_of_others_survive(tmp_path):
    (tmp_path / "thesis.tex").write_text("two years of work")
    journal = Journal.begin(tmp_path, PLAN)
    journal.put(0, b"first", {})
    journal.remove()
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
