"""What was measured on a machine outlives the process, and nothing else is taken for it."""

import json
from pathlib import Path

import pytest

from waterfill.storage import measured

HERE = {"processor": "one", "threads": "1"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache, which is not there yet."""
    monkeypatch.setenv(measured.PLACE, str(tmp_path / "a" / "cache"))
    return tmp_path / "a" / "cache"


def test_what_was_kept_is_found_on_the_same_machine_only(folder: Path) -> None:
    assert measured.recall(HERE, "a") is None
    measured.remember(HERE, "a", {"packed": 1.5})
    measured.remember(HERE, "b", [8, "torch.float32"])
    measured.remember(HERE | {"threads": "2"}, "a", 2)
    assert measured.recall(HERE, "a") == {"packed": 1.5} and measured.recall(HERE, "b") == [8, "torch.float32"]
    assert measured.recall(HERE | {"threads": "2"}, "a") == 2 and measured.recall(HERE | {"torch": "3"}, "a") is None
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"found": {"a": 1}}', "[" * 100_000, "\0\xff"])
def test_a_file_that_cannot_be_read_is_as_none_and_is_replaced(folder: Path, damage: str) -> None:
    measured.remember(HERE, "a", 1)
    (path,) = folder.iterdir()
    path.write_text(damage, "utf-8")
    assert measured.recall(HERE, "a") is None
    measured.remember(HERE, "a", 2)
    assert measured.recall(HERE, "a") == 2


def test_a_file_of_another_machine_or_format_says_nothing(folder: Path) -> None:
    measured.remember(HERE, "a", 1)
    (path,) = folder.iterdir()
    kept = json.loads(path.read_text("utf-8"))
    for changed in (kept | {"machine": {"processor": "other"}}, kept | {"format": 99}, kept | {"found": [1]}):
        path.write_text(json.dumps(changed), "utf-8")
        assert measured.recall(HERE, "a") is None


@pytest.mark.parametrize("switch", ["off", "OFF", "0", ""])
def test_the_cache_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, switch: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(measured.PLACE, switch)
    measured.remember(HERE, "a", 1)
    assert measured.folder() is None and measured.recall(HERE, "a") is None and not list(tmp_path.iterdir())


def test_the_users_cache_is_where_the_system_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(measured.PLACE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert measured.folder() == tmp_path / "waterfill"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert measured.folder() == Path.home() / ".cache" / "waterfill"


def test_a_folder_that_cannot_be_made_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(measured.PLACE, str(tmp_path / "file" / "cache"))
    measured.remember(HERE, "a", 1)
    assert measured.recall(HERE, "a") is None
