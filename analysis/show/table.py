"""A table as data. `render` prints it for people; its CSV has full precision and the ends of intervals in columns of their own.

Table("overview", "All runs", columns, [row_of(columns, line) for line in lines], "What it shows.")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, takewhile
from typing import NamedTuple

import pandas as pd

from specbench.analysis.show.cells import UNBROKEN, Cell, Column, Row
from specbench.analysis.show.csv_text import csv_text

PAGE = 105  # characters of small print on a text width
UNBROKEN_IN_COLUMN = 18  # characters that stay on one line where the table fills a column of a paper
PAGE_PIXELS, PADDING = 1044, 7  # of a report's page, and of a cell on either side
PIXELS, BOLD_PIXELS = 7.2, 8.2  # of a character of a table and of its headings, in a wide font


class Entry(NamedTuple):
    """A cell in its place. span: rows that it covers; 0 where it goes on from the row above."""

    column: Column
    cell: Cell
    span: int


class Line(NamedTuple):
    """A row as it is printed. head: title of a section that begins here. rule: whether a line parts it from the row above."""

    head: str
    rule: bool
    entries: list[Entry]


@dataclass
class Table:
    """`name` is the file name; `caption` says n, estimator, hardware and what each column means."""

    name: str
    title: str
    columns: list[Column]
    rows: list[Row]
    caption: str
    notes: list[str] = field(default_factory=list)
    in_column: bool = False  # fills one column of a paper in two, neither more nor less

    def __len__(self) -> int:
        return len(self.rows)

    def drop_empty_columns(self) -> Table:
        """Without columns in which no row has anything."""
        self.columns = [c for c in self.columns if any(row.cell(c.key).value is not None for row in self.rows)]
        return self

    def fold(self, key: str) -> Table:
        """With one and the same entry in every row, a text column moves into the caption."""
        entries = {row.cell(key).text() for row in self.rows}
        column = next((c for c in self.columns if c.key == key), None)
        if column is not None and len(entries) == 1:
            self.columns.remove(column)
            self.caption = f"{column.label.capitalize()}: {entries.pop()}. {self.caption}"
        return self

    # ------------------------------------------------------------------------------------------------ as it is printed
    @property
    def grouped(self) -> bool:
        return any(c.group for c in self.columns)

    def groups(self) -> Iterator[tuple[str, int, int]]:
        """The headings over the columns, each with the first and the last column that it covers, from 1."""
        last = 0
        for label, span in label_spans([c.group for c in self.columns]):
            yield label, last + 1, last + span
            last += span

    def width(self, column: Column) -> int:
        """Characters of the longest entry, the label included."""
        return max(len(column.label), *(len(row.cell(column.key).text()) for row in self.rows))

    def is_long(self, column: Column) -> bool:
        return self.width(column) > (UNBROKEN_IN_COLUMN if self.in_column else UNBROKEN)

    @property
    def is_wide(self) -> bool:
        """Wider than a page of a paper."""
        return sum(map(self._printed, self.columns)) > PAGE

    @property
    def spans_columns(self) -> bool:
        """Wider than one column of a paper in two."""
        return not self.in_column and sum(map(self._printed, self.columns)) > PAGE / 2 - 4

    def _printed(self, column: Column) -> float:
        return min(self.width(column), UNBROKEN) + 2

    def columnwise(self) -> list[Table]:
        """As many tables of all rows, one below the other, as a page of a paper needs."""
        return self._parts(PAGE, self._printed)

    def pages(self) -> list[Table]:
        """The same for a report's page, where an interval stands below its value and a heading is broken at its spaces."""

        def pixels(column: Column) -> float:
            cells = [row.cell(column.key) for row in self.rows]
            entries = [max(len(cell.shown), len(cell.interval)) if not column.text else len(cell.text()) for cell in cells]
            longest = max(entries, default=0)
            shown = PIXELS * min(longest, UNBROKEN if column.text else longest)
            return max(shown, *(BOLD_PIXELS * len(word) for word in column.label.split()), PIXELS) + 2 * PADDING

        return self._parts(PAGE_PIXELS, pixels)

    def _parts(self, room: float, width: Callable[[Column], float]) -> list[Table]:
        """Parts that fit, each with the texts that the rows begin with; columns under one heading stay together if they can."""
        begin: list[Column] = []
        for column in takewhile(lambda column: column.text, self.columns):
            if begin and sum(map(width, [*begin, column])) > room / 2:
                break
            begin.append(column)
        left = room - sum(map(width, begin))
        parts: list[list[Column]] = [[]]
        at = len(begin)
        for label, span in label_spans([c.group for c in self.columns[at:]]):
            block = self.columns[at : at + span]
            whole = label and sum(map(width, block)) <= left
            for unit in [block] if whole else [[column] for column in block]:
                if parts[-1] and sum(map(width, [*parts[-1], *unit])) > left:
                    parts.append([])
                parts[-1] += unit
            at += span
        return [replace(self, columns=[*begin, *part]) for part in parts] if len(parts) > 1 else [self]

    def lines(self, columns: Sequence[Column] | None = None) -> Iterator[Line]:
        """The rows with merged cells worked out, of all columns or of some."""
        columns = self.columns if columns is None else columns
        merged = [c.key for c in columns if c.merge]
        for number, row in enumerate(self.rows):
            before = self.rows[number - 1] if number else None
            begins = row.section != (before.section if before else "")
            parted = before is not None and bool(merged) and before.cell(merged[0]).text() != row.cell(merged[0]).text()
            entries = [
                Entry(c, row.cell(c.key), self._span(number, merged[: merged.index(c.key) + 1]) if c.merge else 1)
                for c in columns
            ]
            head = row.section if begins else ""
            yield Line(head, before is not None if head else parted, entries)

    def _span(self, number: int, keys: Sequence[str]) -> int:
        """Rows that a merged cell starting here covers; 0 if it continues one from above."""

        def face(row: Row) -> list[str]:
            return [row.section, *(row.cell(key).text() for key in keys)]

        own = face(self.rows[number])
        if number and face(self.rows[number - 1]) == own:
            return 0
        return len(list(takewhile(lambda row: face(row) == own, self.rows[number:])))

    def to_csv(self) -> str:
        """With full precision; the ends of intervals, where there are any, and sections in columns of their own."""
        columns: dict[str, list[object]] = {}
        if any(row.section for row in self.rows):
            columns["section"] = [row.section for row in self.rows]
        for key in (column.key for column in self.columns):
            cells = [row.cell(key) for row in self.rows]
            columns[key] = [cell.value for cell in cells]
            if any(cell.low is not None for cell in cells):
                columns |= {f"{key}_low": [cell.low for cell in cells], f"{key}_high": [cell.high for cell in cells]}
        return csv_text(pd.DataFrame(columns, dtype=object))


def label_spans(labels: Sequence[str]) -> list[tuple[str, int]]:
    """Consecutive equal labels with their number."""
    return [(label, len(list(equal))) for label, equal in groupby(labels)]
