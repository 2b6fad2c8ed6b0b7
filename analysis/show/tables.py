"""A table as data, and its four forms: LaTeX (booktabs), CSV, Markdown and HTML.

The CSV carries full precision and the ends of intervals in columns of their own; the other forms print "1.73 [1.61, 1.85]".
"""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

MISSING = "-"
UNBROKEN = 46  # characters that HTML keeps on one line


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

    def text(self) -> str:
        if self.value is None:
            return MISSING
        if isinstance(self.value, str):
            return self.value
        shown = f"{self.value:,.{self.digits}f}"
        if self.low is None or self.high is None:
            return shown
        return f"{shown} [{self.low:.{self.digits}f}, {self.high:.{self.digits}f}]"


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


@dataclass(frozen=True)
class Column:
    """`key` names it in the CSV (with its unit), `label` in the other forms; `group` is a heading over several columns.

    merge: equal entries in consecutive rows are one cell in LaTeX and blank after the first elsewhere.
    """

    key: str
    label: str
    group: str = ""
    merge: bool = False
    text: bool = False


@dataclass
class Row:
    """Cells by column key. `section` heads a part of the table; `ranked` rows compete for bold print."""

    cells: dict[str, Cell]
    section: str = ""
    ranked: bool = True

    def cell(self, key: str) -> Cell:
        return self.cells.get(key, Cell(None))


@dataclass
class Table:
    """`name` is the file name; `caption` says n, estimator, hardware and what each column means."""

    name: str
    title: str
    columns: list[Column]
    rows: list[Row]
    caption: str
    notes: list[str] = field(default_factory=list)

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

    def save(self, folder: Path) -> list[Path]:
        """name.tex, name.csv and name.md in the folder; returns the paths."""
        from specbench.analysis.show.latex import to_latex

        folder.mkdir(parents=True, exist_ok=True)
        forms = {"tex": to_latex, "csv": to_csv, "md": to_markdown}
        paths = []
        for ending, render in forms.items():
            path = folder / f"{self.name}.{ending}"
            path.write_text(render(self), encoding="utf-8")
            paths.append(path)
        return paths


def mark_best(rows: Iterable[Row], key: str, largest: bool = True) -> None:
    """Print the best of the ranked rows in bold; equal ones all, a single one not at all."""
    ranked = [row for row in rows if row.ranked and row.cell(key).number is not None]
    if len(ranked) < 2:
        return
    best = (max if largest else min)(row.cell(key).number or 0.0 for row in ranked)
    for row in ranked:
        if row.cell(key).number == best:
            row.cells[key] = replace(row.cell(key), bold=True)


# ---------------------------------------------------------------------------------------------------- CSV
def to_csv(table: Table) -> str:
    with_interval = {c.key for c in table.columns if any(row.cell(c.key).low is not None for row in table.rows)}
    sections = any(row.section for row in table.rows)
    header = ["section"] if sections else []
    for column in table.columns:
        header.append(column.key)
        if column.key in with_interval:
            header += [f"{column.key}_low", f"{column.key}_high"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row in table.rows:
        line: list[object] = [row.section] if sections else []
        for column in table.columns:
            cell = row.cell(column.key)
            line.append("" if cell.value is None else cell.value)
            if column.key in with_interval:
                line += ["" if end is None else end for end in (cell.low, cell.high)]
        writer.writerow(line)
    return out.getvalue()


# ---------------------------------------------------------------------------------------------------- Markdown
def to_markdown(table: Table) -> str:
    """The table, its caption below, and its notes."""

    def escaped(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    labels = [f"{c.group}: {c.label}" if c.group and c.label else c.group or c.label for c in table.columns]
    lines = ["| " + " | ".join(map(escaped, labels)) + " |"]
    lines.append("|" + "|".join(":--" if c.text else "--:" for c in table.columns) + "|")
    section = ""
    for row in table.rows:
        if row.section != section:
            section = row.section
            lines.append(f"| *{escaped(section)}* |" + " |" * (len(table.columns) - 1))
        shown = []
        for column in table.columns:
            cell = row.cell(column.key)
            shown.append(f"**{escaped(cell.text())}**" if cell.bold else escaped(cell.text()))
        lines.append("| " + " | ".join(shown) + " |")
    lines += ["", f"*{escaped(table.caption)}*"]
    lines += [f"\n- {escaped(note)}" if i == 0 else f"- {escaped(note)}" for i, note in enumerate(table.notes)]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------------- HTML
def to_html(table: Table) -> str:
    def escaped(text: str) -> str:
        return html.escape(text)

    lines = ['<div class="scroll"><table>', "<thead>"]
    if any(c.group for c in table.columns):
        cells = [
            f'<th colspan="{span}" class="group">{escaped(label)}</th>' if label else f'<th colspan="{span}"></th>'
            for label, span in label_spans([c.group for c in table.columns])
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(f'<th class="{"t" if c.text else "n"}">{escaped(c.label)}</th>' for c in table.columns)
    lines.append(f"<tr>{heads}</tr></thead><tbody>")
    section = ""
    before: dict[str, str] = {}
    for row in table.rows:
        if row.section != section:
            section, before = row.section, {}
            lines.append(f'<tr><td colspan="{len(table.columns)}" class="section">{escaped(section)}</td></tr>')
        cells = []
        for i, column in enumerate(table.columns):
            cell = row.cell(column.key)
            text = escaped(cell.text())
            if column.merge and all(before.get(c.key) == row.cell(c.key).text() for c in table.columns[: i + 1] if c.merge):
                text = ""
            text = text.replace(" [", ' <span class="ci">[').replace("]", "]</span>") if cell.low is not None else text
            kind = "n" if not column.text else "t" if len(cell.text()) <= UNBROKEN else "w"
            cells.append(f'<td class="{kind}">{f"<b>{text}</b>" if cell.bold else text}</td>')
        before = {c.key: row.cell(c.key).text() for c in table.columns}
        lines.append(f"<tr>{''.join(cells)}</tr>")
    lines.append("</tbody></table></div>")
    lines.append(f'<p class="caption">{escaped(table.caption)}</p>')
    if table.notes:
        lines.append("<ul>" + "".join(f"<li>{escaped(note)}</li>" for note in table.notes) + "</ul>")
    return "\n".join(lines)


def label_spans(labels: Sequence[str]) -> list[tuple[str, int]]:
    """Consecutive equal labels with their number."""
    spans: list[tuple[str, int]] = []
    for label in labels:
        if spans and spans[-1][0] == label:
            spans[-1] = (label, spans[-1][1] + 1)
        else:
            spans.append((label, 1))
    return spans
