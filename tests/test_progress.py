"""Who is told of progress, and the bar."""

import contextlib
import io

import pytest
import torch
from torch import nn

import waterfill
from waterfill import progress
from waterfill.compression.options import Options
from waterfill.progress import Bar, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is shown."""
    monkeypatch.setattr(progress, "_PATIENCE", -1.0)
    monkeypatch.setattr(progress, "_PAUSE", -1.0)


def shown(options: Options, screen: io.StringIO) -> str:
    """What is written while a layer is compressed."""
    with contextlib.redirect_stderr(screen):
        waterfill.compress(nn.Linear(16, 16), [torch.randn(8, 16)] * 2, spec="Quantize()", price=1e-4, options=options)
    return screen.getvalue()


def test_a_terminal_gets_a_bar_and_a_clean_line_after_it() -> None:
    text = shown(Options(), Terminal())
    assert "calibrating [" in text and "fitting [" in text and "refitting [" in text
    assert "\n" not in text and text.endswith("\r") and text.split("\r")[-2].strip() == ""


@pytest.mark.parametrize("chosen", [False, lambda _: None])
def test_no_bar_for_those_who_say_so_or_have_their_own(chosen: object) -> None:
    assert shown(Options(progress=chosen), Terminal()) == ""


def test_no_bar_where_nobody_watches_unless_it_is_asked_for() -> None:
    assert shown(Options(), io.StringIO()) == ""
    assert "fitting [" in shown(Options(progress=True), io.StringIO())


def test_a_bar_says_how_much_is_done() -> None:
    with contextlib.redirect_stderr(io.StringIO()) as screen:
        Bar()(Progress("fitting", 1, 4, 25, 100))
    assert f"[{'#' * 8}{'.' * 22}] 1 of 4" in screen.getvalue()
