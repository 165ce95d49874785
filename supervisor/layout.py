"""Text for people: columns that fit a terminal, lines that fold, and nothing that a terminal obeys.

A width of None is a pipe's: one row a line with tabs between its cells, nothing padded, cut or
folded, so that grep and awk can take it apart.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

_GAP = 2
"""Blanks between two columns, and before a line that belongs to the one above."""
_NAME_MIN = 12
"""Columns that names have to have; with less the cells of a row go below its name."""
_FOLD_MIN = 16
"""However far a line is indented, so much of it is left, if the terminal has so much."""
HEAD = "bold"


def visible(text: str) -> str:
    """The text with everything that a terminal would obey, or not show, as an escape: `\\x1b[31m`
    in a model's name must not colour what follows, and a newline not look like another row."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def one_line(text: str) -> str:
    """The same for a sentence, whose line breaks mean nothing."""
    return visible(" ".join(text.split()))


def _escaped(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


class Room(enum.Enum):
    """What becomes of a column for which there is no room."""

    ALWAYS = enum.auto()
    """There is: rows are taken apart for it."""
    IF_WIDE = enum.auto()
    """It is left out."""
    ELSE_BELOW = enum.auto()
    """Its cells go below their rows, each on a line of its own."""


@dataclass(frozen=True, slots=True)
class Column:
    """What stands above it, and whether it holds numbers, which are aligned to the right."""

    title: str
    number: bool = False
    room: Room = Room.ALWAYS


@dataclass(frozen=True, slots=True)
class Row:
    """A cell for each column, and sentences that belong to it."""

    cells: Sequence[str]
    notes: Sequence[str] = ()
    style: str = ""
    """Of the name."""


def table(
    columns: Sequence[Column], rows: Sequence[Row], width: int | None, *, name: int = 0
) -> list[Text]:
    """Lines without trailing blanks. Cells and notes may hold anything. The column `name` is what
    rows are called by: it may be long, and has a line of its own then."""
    shown = [
        Row(tuple(map(visible, row.cells)), tuple(map(one_line, row.notes)), row.style)
        for row in rows
    ]
    if width is None:
        return list(_piped(columns, shown, name))
    wide = _fitting(columns, shown, width)
    below = [
        index
        for index, column in enumerate(columns)
        if index not in wide and column.room is Room.ELSE_BELOW
    ]
    return list(_Grid(columns, shown, wide, below, name, width).lines())


def fold(text: str, width: int | None, first: str = "", rest: str | None = None) -> list[str]:
    """The text in lines of at most `width` columns, which begin with `first` and `rest` (None =
    as many blanks). Words that are longer are taken apart."""
    rest = " " * cell_len(first) if rest is None else rest
    if width is None or cell_len(first) + cell_len(text) <= width:
        return [f"{first}{text}".rstrip()]
    room = max(min(_FOLD_MIN, width), width - max(cell_len(first), cell_len(rest)))
    folded = Text(text).wrap(Console(width=room), room, overflow="fold")
    return [f"{rest if index else first}{line.plain}".rstrip() for index, line in enumerate(folded)]


def _joined(items: Iterable[str], width: int) -> Iterator[str]:
    """Items of a list, in lines that part none of them if they can help it."""
    line = ""
    for item in items:
        longer = f"{line}, {item}" if line else f"{' ' * _GAP}{item}"
        if line and cell_len(longer) >= width:  # a comma follows
            yield f"{line},"
            longer = f"{' ' * _GAP}{item}"
        line = longer
    if line:
        yield from fold(line.lstrip(), width, " " * _GAP, " " * 2 * _GAP)


def _piped(columns: Sequence[Column], rows: Iterable[Row], name: int) -> Iterator[Text]:
    yield Text("\t".join(column.title for column in columns))
    for row in rows:
        yield Text("\t".join(cell or "-" for cell in row.cells))
        for note in row.notes:
            yield Text(f"{row.cells[name]}: {note}")


def _fitting(columns: Sequence[Column], rows: Sequence[Row], width: int) -> list[int]:
    """The columns that are shown as such: those that always are, and of the others as many as have
    room."""
    widths = [_natural(columns, rows, index) for index in range(len(columns))]
    always = {index for index, column in enumerate(columns) if column.room is Room.ALWAYS}
    for index in range(len(columns)):
        used = sum(widths[each] + _GAP for each in {*always, index}) - _GAP
        filled = any(row.cells[index] for row in rows)
        if used <= width and filled:
            always.add(index)
    return sorted(always)


def _natural(columns: Sequence[Column], rows: Sequence[Row], index: int) -> int:
    cells = (cell_len(row.cells[index]) for row in rows)
    return max([cell_len(columns[index].title), *cells])


class _Grid:
    """Rows for a terminal: `wide` are the columns, `below` those whose cells go below."""

    def __init__(
        self,
        columns: Sequence[Column],
        rows: Sequence[Row],
        wide: Sequence[int],
        below: Sequence[int],
        name: int,
        width: int,
    ) -> None:
        self._columns, self._rows, self._below, self._width = columns, rows, below, width
        self._wide, self._name = wide, name
        self._others = [index for index in wide if index != name]
        self._widths = {index: _natural(columns, rows, index) for index in wide}
        room = width - sum(self._widths[index] + _GAP for index in self._others)
        title = cell_len(columns[name].title)
        names = [cell_len(row.cells[name]) for row in rows]
        self._stacked = bool(self._others) and room < min(_NAME_MIN, max([title, *names]))
        # Names that are longer than there is room have a line of their own.
        self._widths[name] = max([title, *(each for each in names if each <= room)])

    def lines(self) -> Iterator[Text]:
        if not self._stacked:
            yield Text(self._row([column.title for column in self._columns]), HEAD)
        for row in self._rows:
            yield from self._name_and_cells(row)
            for index in self._below:
                if row.cells[index]:
                    yield from self._note(f"{self._columns[index].title}: {row.cells[index]}")
            for note in row.notes:
                yield from self._note(note)

    def _name_and_cells(self, row: Row) -> Iterator[Text]:
        name = row.cells[self._name]
        if not self._stacked and cell_len(name) <= self._widths[self._name]:
            line = Text(self._row(row.cells))
            if self._name == self._wide[0]:
                line.stylize(row.style, 0, len(name))
            yield line
            return
        yield from (Text(line, row.style) for line in fold(name, self._width, rest="  "))
        if self._stacked:
            told = [
                f"{self._columns[index].title} {row.cells[index]}"
                for index in self._others
                if row.cells[index]
            ]
            yield from map(Text, _joined(told, self._width))
        elif self._others:
            cells = [*row.cells]
            cells[self._name] = ""
            yield Text(self._row(cells))

    def _row(self, cells: Sequence[str]) -> str:
        padded = []
        for index in self._wide:
            blanks = " " * (self._widths[index] - cell_len(cells[index]))
            number = self._columns[index].number
            padded.append(blanks + cells[index] if number else cells[index] + blanks)
        return (" " * _GAP).join(padded).rstrip()

    def _note(self, text: str) -> Iterator[Text]:
        yield from map(Text, fold(text, self._width, " " * _GAP, " " * 2 * _GAP))
