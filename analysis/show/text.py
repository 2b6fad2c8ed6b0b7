"""One comparison as text for a terminal, at most 120 columns: what the front door prints when a sweep has ended."""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path

from rich.box import Box
from rich.console import Console, JustifyMethod
from rich.table import Table as RichTable

from specbench.analysis.derive.conditions import Group, apart, groups
from specbench.analysis.derive.derive import Comparison, comparisons
from specbench.analysis.derive.ranking import is_ranked
from specbench.analysis.read.frames import LeftOut, load
from specbench.analysis.show.answer import answer
from specbench.analysis.show.cells import Column, row_of
from specbench.analysis.show.members import EMITTED, LOSSLESS, SPEEDUP, TOKENS_PER_SECOND, WHY_NOT_RANKED, Member, members
from specbench.analysis.show.run_tables import told_from_one
from specbench.analysis.show.table import Table, label_spans
from specbench.config.say import visible

WIDTH = 120
RULE = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)  # a line below the labels and nothing else
_WORDS = "speed-up: ratio of totals over the run's own baseline, interval over prompts; emitted: tokens per target forward"
_MAX_METHOD = 44


def compare(folders: Sequence[str | Path], *, unfinished: bool = False) -> str:
    """A paragraph that answers what was fastest, a block per conditions, pair and data set, a row per run; then what was left
    out and why. Raises ValueError if empty."""
    frames = load(folders, unfinished=unfinished)
    lines: list[str] = []
    found = [(group, comparisons(frames, group)) for group in groups(frames)]
    lines += wrapped(" ".join(f"{head} {text}" for head, text in answer(found)))
    lines += [""] if lines else []
    for group, cells in found:
        if len(found) > 1:
            main = found[0][0]
            other = "" if group is main else f", not compared with conditions {main.number}: {apart(frames, group, main)}"
            lines += wrapped(f"Conditions {group.number}{other}")
        for comparison in cells:
            lines += [*_block(group, comparison), ""]
            lines += left_out_lines(comparison.left_out)
        lines += left_out_lines(group.left_out)
        for _, floor in group.noise_floors.iterrows():
            ends = f"{floor['speedup_low']:.3f} to {floor['speedup_high']:.3f}"
            lines += wrapped(f"noise floor (the baseline against itself on {floor['data']}): {ends}", "  ")
    lines += left_out_lines(frames.left_out)
    if frames.runs.empty and not lines:
        raise ValueError("no run to compare")
    return "\n".join([*lines, _WORDS])


def left_out_lines(items: Iterable[LeftOut]) -> list[str]:
    return [line for item in items for line in wrapped(f"left out: {item.folder}: {item.why}", "  ")]


def _block(group: Group, comparison: Comparison) -> list[str]:
    def told(m: Member) -> str:
        return " ?" if (told_from_one(group, m.comparison, m.run) or "yes") != "yes" else ""

    def label(m: Member) -> str:
        text = str(m.facts["label"]) + ("" if is_ranked(m.facts) else " *")
        return text if len(text) <= _MAX_METHOD else text[: _MAX_METHOD - 3] + "..."

    columns = [
        Column("method", "method", text=True, of=label),
        Column("n", "n", digits=0, of=lambda m: m.figures["num_prompts"]),
        TOKENS_PER_SECOND,
        Column("speedup", "speed-up [95 %]", of=lambda m: SPEEDUP.cell(m).text() + told(m)),
        Column("emitted_per_round", "emitted", of=EMITTED.of),
        Column("acceptance_percent", "acc. %", digits=1, of=lambda m: m.acceptance_percent),
        LOSSLESS,
    ]
    rows = [row_of(columns, m) for m in members(comparison)]
    lines = wrapped(f"{comparison.data}, {comparison.pair}, {comparison.runs['machine'].iloc[0]}")
    lines += _grid(columns, [[row.cell(c.key).text() for c in columns] for row in rows])
    lines += [part for note in comparison.notes for part in wrapped(note, "  ")]
    if not all(is_ranked(facts) for _, facts in comparison.runs.iterrows()):
        lines += wrapped(f"* {WHY_NOT_RANKED}", "  ")
    if any(row.cell("speedup").text().endswith(" ?") for row in rows):
        why = "an interval, over prompts or over repeats, contains it, or lies in the noise floor, or there is none"
        lines += wrapped(f"? not distinguishable from 1: {why}", "  ")
    return lines


def table_text(table: Table) -> str:
    """A report's table for a terminal: as many columns as fit, the others by name; title and notes around it."""
    columns = [c for c in table.columns if any(row.cell(c.key).value is not None for row in table.rows)]
    alone = {label for label, number in Counter(c.group for c in columns).items() if number == 1}
    # A heading over one column widens it, a heading over several has room.
    widths = [max(table.width(c), len(c.group) if c.group in alone else 0) for c in columns]
    ends = [sum(widths[: i + 1]) + 2 * i for i in range(len(columns))]
    shown = columns[: max(1, sum(end <= WIDTH for end in ends))]
    printed = list(table.lines(shown))
    entries = [[entry.cell.text() if entry.span else "" for entry in line.entries] for line in printed]
    head, rule, *body = _grid(shown, entries, widths)
    lines = wrapped(table.title)
    if any(c.group for c in shown):
        rooms, at = [], 0
        for label, span in label_spans([visible(c.group) for c in shown]):
            room = ends[at + span - 1] - ends[at] + widths[at]
            rooms.append(label[:room].center(room))
            at += span
        lines.append("  ".join(rooms).rstrip())
    lines += [head, rule]
    for line, text in zip(printed, body, strict=True):
        lines += [*(wrapped(f"{line.head}:", "") if line.head else []), text]
    rest = "; ".join(c.heading for c in columns[len(shown) :])
    lines += wrapped(f"further columns in tables/{table.name}.csv: {rest}", "  ") if rest else []
    return "\n".join([*lines, *(part for note in table.notes for part in wrapped(note, "  "))])


def _grid(columns: Sequence[Column], rows: Iterable[Sequence[str]], widths: Iterable[int] = repeat(0)) -> list[str]:
    """A line of labels, a rule and a line per row, cut at WIDTH. widths: the least of each column."""
    grid = RichTable(box=RULE, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for column, width in zip(columns, widths, strict=False):
        side: JustifyMethod = "left" if column.text else "right"
        grid.add_column(visible(column.label), justify=side, no_wrap=True, min_width=width, overflow="crop")
    for row in rows:
        grid.add_row(*map(visible, row))
    out = io.StringIO()
    to = Console(file=out, width=WIDTH, force_jupyter=False, color_system=None, markup=False, emoji=False, highlight=False)
    to.print(grid)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def wrapped(text: str, indent: str = "") -> list[str]:
    """Lines of at most WIDTH columns, broken at spaces; a longer word (a path) is cut where it must be."""
    room, line = WIDTH - len(indent), visible(" ".join(text.split()))
    return [indent + part for part in textwrap.wrap(line, room, break_on_hyphens=False)]
