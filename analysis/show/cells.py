"""What a table is made of: cells, the columns that fill them from a row's item, and rows.

    columns = [Column("method", "method", of=lambda line: line.label, text=True), Column("speedup", "speed-up", of=...)]
    rows = [row_of(columns, line) for line in lines]

A column says once what it is called and how a row's item fills it; a row may also be made of cells by column key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

MISSING = "-"
UNBROKEN = 46  # characters that stay on one line


@dataclass(frozen=True)
class Cell:
    """One entry. `value` is a number, text or None (missing); low and high are the ends of its 95 % interval."""

    value: float | str | None
    low: float | None = None
    high: float | None = None
    digits: int = 2
    bold: bool = False

    @classmethod
    def of(cls, value: float | None, low: float | None = None, high: float | None = None, digits: int = 2) -> Cell:
        """A number; NaN counts as missing."""
        ends = (_known(low), _known(high))
        return cls(_known(value), *(ends if None not in ends else (None, None)), digits)

    @property
    def number(self) -> float | None:
        return float(self.value) if isinstance(self.value, int | float) else None

    @property
    def shown(self) -> str:
        """Without its interval."""
        if self.value is None:
            return MISSING
        return self.value if isinstance(self.value, str) else f"{self.value:,.{self.digits}f}"

    @property
    def interval(self) -> str:
        """`[1.61, 1.85]`; empty without one."""
        if self.low is None or self.high is None or self.number is None:
            return ""
        return f"[{self.low:.{self.digits}f}, {self.high:.{self.digits}f}]"

    def text(self) -> str:
        """As papers print it: `1.73 [1.61, 1.85]`."""
        return f"{self.shown} {self.interval}" if self.interval else self.shown

    @property
    def is_long(self) -> bool:
        return len(self.text()) > UNBROKEN


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


@dataclass(frozen=True)
class Column:
    """`key` names it in the CSV (with its unit), `label` in the other forms; `group` is a heading over several columns.

    of: what a row's item says here: a number, an estimate (value, low, high), text, a cell, or None for a missing entry;
    without it items are mappings by key. digits: behind the point. merge: equal entries in consecutive rows are one cell in
    LaTeX and blank after the first in HTML and on a terminal. text: set to the left. best: which of the ranked rows
    `mark_columns` prints in bold, `largest` or `smallest`.
    """

    key: str
    label: str
    group: str = ""
    merge: bool = False
    text: bool = False
    of: Callable[[Any], Any] | None = None
    digits: int = 2
    best: str = ""

    @property
    def heading(self) -> str:
        return ": ".join(part for part in (self.group, self.label) if part)

    def of_part(self, part: Callable[[Any], Any], **changes: Any) -> Column:
        """The same column of a part of the item (None: missing), with changes."""

        def cell(item: Any) -> Cell:
            own = part(item)
            return Cell(None) if own is None else self.cell(own)

        return replace(self, of=cell, **changes)

    def cell(self, item: Any) -> Cell:
        value = item.get(self.key) if self.of is None else self.of(item)
        if isinstance(value, Cell):
            return value
        if value is None or isinstance(value, str):
            return Cell(value)
        low, high = getattr(value, "low", None), getattr(value, "high", None)
        return Cell.of(getattr(value, "value", value), low, high, self.digits)


@dataclass
class Row:
    """Cells by column key. `section` heads a part of the table; `ranked` rows compete for bold print."""

    cells: dict[str, Cell]
    section: str = ""
    ranked: bool = True

    def cell(self, key: str) -> Cell:
        return self.cells.get(key, Cell(None))


def row_of(columns: Iterable[Column], item: Any, section: str = "", ranked: bool = True) -> Row:
    """What the columns say of an item."""
    return Row({column.key: column.cell(item) for column in columns}, section, ranked)


def mark_best(rows: Iterable[Row], key: str, largest: bool = True) -> None:
    """Print the best of the ranked rows in bold; equal ones all, a single one not at all."""
    ranked = [row for row in rows if row.ranked and row.cell(key).number is not None]
    if len(ranked) < 2:
        return
    best = (max if largest else min)(row.cell(key).number or 0.0 for row in ranked)
    for row in ranked:
        if row.cell(key).number == best:
            row.cells[key] = replace(row.cell(key), bold=True)


def mark_columns(columns: Iterable[Column], rows: Sequence[Row]) -> None:
    """`mark_best` in every column that says which entry is its best."""
    for column in columns:
        if column.best:
            mark_best(rows, column.key, column.best == "largest")
