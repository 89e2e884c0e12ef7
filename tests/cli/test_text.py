"""Sizes, tables and progress lines, as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterfill.cli.progress import Meter, line_of
from waterfill.progress import Progress
from waterfill.report.listing import SHORT, Item, overview
from waterfill.report.text import (
    WIDTH,
    Column,
    bytes_text,
    count_text,
    parse_size,
    printable,
    screen,
    seconds_text,
    shortened,
    table,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("54000", 54000),
        ("3MB", 3_000_000),
        ("3 MiB", 3 << 20),
        ("500kB", 500_000),
        ("1.5 GiB", 3 << 29),
        ("2k", 2000),
        ("2 GB", 2 * 10**9),
        ("7B", 7),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "3 TB", "-3MB", "1e6", "3,5MB", "inf", "3MBB MB", "0x10"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="3MB"):
        parse_size(text)


def test_numbers_for_reading():
    assert [bytes_text(n) for n in (0, 999, 1000, 54321, 3_000_000, 9.9999e8)] == [
        *("0 B", "999 B", "1.00 kB", "54.32 kB", "3.00 MB", "1.00 GB"),
    ]
    assert [count_text(n) for n in (10, 269_722, 1_236_000_000)] == ["10", "269.7 k", "1.24 G"]
    assert [seconds_text(s) for s in (0.21, 42, 200, 7260)] == ["0.2 s", "42 s", "3 min 20 s", "2 h 1 min"]


@given(st.text())
def test_only_printable_characters_are_left_and_those_are_left_alone(text):
    assert printable(text).isprintable()
    assert not text.isprintable() or printable(text) == text


@given(st.text(min_size=1, max_size=50), st.integers(5, 40))
def test_what_is_shortened_fits_and_keeps_both_ends(text, width):
    short = shortened(text, width)
    assert len(short) <= width
    assert short == text or (short[0], short[-1]) == (text[0], text[-1])


@given(st.lists(st.tuples(st.text(max_size=120), st.integers(0, 10**9).map(str), st.text(max_size=90)), max_size=5))
def test_a_table_fits_the_screen_and_shows_its_numbers_whole(rows):
    columns = [Column("name", text=True), Column("bytes"), Column("part", text=True)]
    lines, whole = (table(columns, rows, width).split("\n") for width in (WIDTH, None))
    assert len(lines) == 2 + len(rows)
    assert all(number in line for line, (_, number, _) in zip(lines[2:], rows, strict=True))
    if len(rows) < 2:  # else texts that differ in the middle keep it
        assert max(map(len, lines)) <= WIDTH
    for line, (name, number, part) in zip(whole[2:], rows, strict=True):
        assert printable(name).strip() in line and number in line and printable(part).strip() in line


def test_texts_that_differ_in_the_middle_only_stay_different():
    names = [f"{'blocks.' * 9}{i}.{'attention.' * 9}weight" for i in range(12)]
    parts = [f"quantized{' + sparse' * i} of {'quantized, ' * 6}quantized" for i in range(12)]
    columns = [Column("tensor", text=True, least=32), Column("part", text=True), Column("bytes")]
    rows = list(zip(names, parts, ["1"] * 12, strict=True))
    lines = table(columns, rows, WIDTH).split("\n")[2:]
    assert len({line.split()[0] for line in lines}) == 12
    assert len({line.split(maxsplit=1)[1] for line in lines}) == 12
    assert max(map(len, lines)) < max(len(name) + len(part) for name, part in zip(names, parts, strict=True))
    assert table(columns, rows[:1], WIDTH).split("\n")[2].count("..") == 2  # one alone may be cut


@pytest.mark.parametrize(("terminal", "columns", "width"), [(True, 180, 180), (True, 40, WIDTH), (False, 180, None)])
def test_a_table_is_as_wide_as_the_terminal_and_uncut_without_one(monkeypatch, terminal, columns, width):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    assert screen() == width
    monkeypatch.setattr("sys.stdout", None)
    assert screen() is None


def test_a_column_without_entries_is_left_out():
    assert "error" not in table([Column("name", text=True), Column("error")], [("a", ""), ("b", "")])


def items(count: int) -> list[Item]:
    return [
        Item(f"layers.{i}.weight", (8, 8), "float32", "quantized", 20 + i % 3, error=i / 1000) for i in range(count)
    ]


def test_a_short_model_has_a_row_for_every_tensor():
    assert len(overview(items(SHORT)).split("\n")) == 2 + SHORT


def test_a_long_model_has_a_row_for_every_pattern_of_names():
    many = [*items(96), Item("embed.weight", (100, 8), "float32", "quantized", 300)]
    text = overview(many)
    row = next(line for line in text.split("\n") if line.startswith("layers.*.weight"))
    assert " 96 " in row and f"{96 * 21}" in row and "9.50 %" in row and "2.62" in row
    assert "embed.weight" in text and "--all" in text and len(text.split("\n")) == 5
    assert len(overview(many, everything=True).split("\n")) == 2 + len(many)


def test_a_number_that_all_share_stays_in_the_name_of_their_row():
    many = [Item(f"layer{i}.{j}.weight", (8 * i, 8), "float32", "quantized", 20) for i in (1, 2) for j in range(30)]
    assert [line.split()[0] for line in overview(many).split("\n")[2:4]] == ["layer1.*.weight", "layer2.*.weight"]


def test_patterns_beyond_what_fits_are_summed_up():
    many = [Item("x" * i + "weight", (4, 4), "float32", "dense", i) for i in range(60)]
    assert f"and {60 - SHORT} tensors more, {sum(range(60 - SHORT))} B" in overview(many)


def test_progress_tells_the_time_left():
    assert line_of(Progress("fitting", 3, 12, 25, 100), 10.0) == "fitting: 3 of 12 tensors, 25 %, 30 s left"
    assert line_of(Progress("fitting", 0, 12, 0, 100), 1.0) == "fitting: 0 of 12 tensors, 0 %"


class Terminal:
    """A standard error that says it is a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None: ...


@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_is_left_as_it_was_found(monkeypatch, quiet):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    times = iter(range(100))
    monkeypatch.setattr("time.monotonic", lambda: float(next(times)))
    with Meter(quiet) as meter:
        meter(Progress("fitting", 1, 2, 50, 100))
    assert ("fitting: 1 of 2" in terminal.text) is not quiet
    assert quiet or terminal.text.endswith("\r\x1b[K")


def test_words_of_any_length_leave_a_table_its_width():
    columns = Column("name", text=True), Column("what", text=True), Column("bytes")
    for long in (10**3, 10**7):
        lines = table(columns, [["x" * long + "END", "y" * long, "7"], ["short", "word", "12345"]], WIDTH).split("\n")
        assert {len(line) for line in lines[1:3]} == {WIDTH}
        assert lines[2].startswith("xxx") and "END" in lines[2] and lines[2].endswith("7")
