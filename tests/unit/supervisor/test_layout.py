"""supervisor.layout: tables and sentences at every width, and nothing that a terminal obeys."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from supervisor.layout import Column, Room, Row, fold, one_line, table, visible

COLUMNS = (
    Column("model"),
    Column("state"),
    Column("memory", number=True),
    Column("uses", number=True, room=Room.IF_WIDE),
    Column("source", room=Room.ELSE_BELOW),
)
LONG = "mlx-community/Qwen3-Coder-480B-A35B-Instruct-4bit-DWQ"
REASON = "its file model-00001-of-00002.safetensors cannot be read: permission denied; see the log"
ROWS = (
    Row(("small", "ready", "0.2 GB", "7", "")),
    Row((LONG, "failed", "171.0 GB", "1000", "/models/of/somebody"), (REASON,)),
    Row(("none", "cold", "", "", ""), ("first", "second")),
)


def lines(width: int | None) -> list[str]:
    return [line.plain for line in table(COLUMNS, ROWS, width)]


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 120, 200])
def test_lines_fit_and_end_without_blanks(width: int) -> None:
    for line in lines(width):
        assert cell_len(line) <= width
        assert line == line.rstrip()


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 120, 200])
def test_nothing_is_cut(width: int) -> None:
    told = "".join("".join(lines(width)).split())
    for text in (LONG, REASON, "0.2 GB", "171.0 GB", "/models/of/somebody", "first", "second"):
        assert "".join(text.split()) in told


def test_a_name_for_which_there_is_no_room_has_a_line_of_its_own_and_numbers_stay_aligned() -> None:
    assert lines(60) == [
        "model  state     memory",
        "small  ready     0.2 GB",
        LONG,
        "       failed  171.0 GB",
        "  source: /models/of/somebody",
        "  its file model-00001-of-00002.safetensors cannot be",
        "    read: permission denied; see the log",
        "none   cold",
        "  first",
        "  second",
    ]
    assert lines(30)[2:4] == ["mlx-community/Qwen3-Coder-48", "  0B-A35B-Instruct-4bit-DWQ"]


def test_what_can_be_left_out_is_shown_where_there_is_room() -> None:
    assert lines(80)[0].split() == ["model", "state", "memory", "uses"]
    assert lines(76)[0].split() == ["model", "state", "memory"]


def test_where_columns_have_no_room_cells_go_below_their_names() -> None:
    assert lines(20)[:3] == ["small", "  state ready,", "  memory 0.2 GB"]
    assert "model" not in lines(20)


def test_a_wide_terminal_has_every_column() -> None:
    head, _, long, reason, *_ = lines(200)
    assert head.split() == ["model", "state", "memory", "uses", "source"]
    assert long.split() == [LONG, "failed", "171.0", "GB", "1000", "/models/of/somebody"]
    assert reason == f"  {REASON}"


def test_a_column_that_nobody_fills_is_no_column_of_a_terminal() -> None:
    rows = [Row(("a", "cold", "", "", ""))]
    assert [line.plain for line in table(COLUMNS, rows, 200)] == [
        "model  state  memory",
        "a      cold",
    ]


def test_a_pipe_gets_a_row_a_line_and_sentences_beside_their_names() -> None:
    assert lines(None) == [
        "model\tstate\tmemory\tuses\tsource",
        "small\tready\t0.2 GB\t7\t-",
        f"{LONG}\tfailed\t171.0 GB\t1000\t/models/of/somebody",
        f"{LONG}: {REASON}",
        "none\tcold\t-\t-\t-",
        "none: first",
        "none: second",
    ]


def test_names_that_take_two_columns_a_character_are_aligned() -> None:
    rows = [Row(("日本語", "ready", "1", "", "")), Row(("abc", "cold", "10", "", ""))]
    _, *told = [line.plain for line in table(COLUMNS, rows, 80)]
    assert {cell_len(line) for line in told} == {cell_len("日本語  state  memory")}


@pytest.mark.parametrize("width", [None, 20, 80])
def test_a_name_cannot_speak_to_the_terminal(width: int | None) -> None:
    evil = "a\x1b[2J\x1b]0;owned\x07\rb\n\tc\u202e\x9b1m\ud800\x7f"
    rows = [Row((evil, evil, evil, evil, evil), (evil,))]
    for line in table(COLUMNS, rows, width):
        assert line.plain.replace("\t", "" if width is None else "\t").isprintable()
    assert visible(evil).startswith("a\\x1b[2J\\x1b]0;owned\\x07\\rb\\n\\tc\\u202e\\x9b1m\\ud800")


def test_a_sentence_is_one_line() -> None:
    assert one_line("two\n  lines\u2028and\x1b[31m red") == "two lines and\\x1b[31m red"


def test_folding() -> None:
    assert fold("word " * 5, 12) == ["word word", "word word", "word"]
    assert fold("word " * 3, 12, "- ") == ["- word word", "  word"]
    assert fold("word " * 3, 12, "- ", "") == ["- word word", "word"]
    assert fold("word " * 30, None) == [("word " * 30).rstrip()]
    assert fold("x" * 40, 20, "  ") == [f"  {'x' * 18}", f"  {'x' * 18}", "  xxxx"]
    # However narrow: something must remain of a line.
    assert fold("some words", 20, " " * 14) == [f"{' ' * 14}some words"]
    assert fold("word", 3) == ["wor", "d"]
