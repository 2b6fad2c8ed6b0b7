"""One comparison as text for a terminal, at most 120 columns: what the front door prints when a sweep has ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specbench.analysis.derive.conditions import Group, differences, groups
from specbench.analysis.derive.derive import Comparison, comparisons, is_ranked
from specbench.analysis.read.frames import Frames, load
from specbench.analysis.show.captions import verdict_text
from specbench.analysis.show.run_tables import told_from_one
from specbench.analysis.show.table import Cell, Column, Table, label_spans

WIDTH = 120
_HEADS = ("method", "n", "tokens/s", "speed-up [95 %]", "emitted", "acc. %", "lossless")
_WORDS = "speed-up: ratio of totals over the run's own baseline, interval over prompts; emitted: tokens per target forward"
_MAX_METHOD = 44


def compare(folders: Sequence[str | Path], *, unfinished: bool = False) -> str:
    """A block per conditions, pair and data set, a row per run; then what was left out and why. Raises ValueError if empty."""
    frames = load(folders, unfinished=unfinished)
    lines: list[str] = []
    found = groups(frames)
    for group in found:
        if len(found) > 1:
            lines += wrapped(f"Conditions {group.number}" + _apart(frames, group, found[0]), "")
        for comparison in comparisons(frames, group):
            lines += [*_block(group, comparison), ""]
            lines += [line for item in comparison.left_out for line in wrapped(f"left out: {item.folder}: {item.why}", "  ")]
        lines += [line for item in group.left_out for line in wrapped(f"left out: {item.folder}: {item.why}", "  ")]
        for _, floor in group.noise_floors.iterrows():
            ends = f"{floor['speedup_low']:.3f} to {floor['speedup_high']:.3f}"
            lines += wrapped(f"noise floor (the baseline against itself on {floor['data']}): {ends}", "  ")
    lines += [line for item in frames.left_out for line in wrapped(f"left out: {item.folder}: {item.why}", "  ")]
    if frames.runs.empty and not lines:
        raise ValueError("no run to compare")
    return "\n".join([*lines, _WORDS])


def _apart(frames: Frames, group: Group, main: Group) -> str:
    if group is main:
        return ""
    members = [*group.runs.index, *group.noise_floors.index]
    others = [*main.runs.index, *main.noise_floors.index]
    why = "; ".join(differences(frames.facts[others[0]], frames.facts[members[0]]))
    return f", not compared with conditions {main.number}: {why}"


def _block(group: Group, comparison: Comparison) -> list[str]:
    rows = []
    for run, facts in comparison.runs.iterrows():
        speed, acceptance = comparison.speedup(run), comparison.per_round(run, "acceptance_rate")
        unclear = " ?" if (told_from_one(group, comparison, run) or "yes") != "yes" else ""
        label = str(facts["label"]) + ("" if is_ranked(facts) else " *")
        rows.append(
            (
                label if len(label) <= _MAX_METHOD else label[: _MAX_METHOD - 3] + "...",
                Cell.of(comparison.figures(run)["num_prompts"], digits=0).text(),
                Cell.of(comparison.rates(run)[0], digits=1).text(),
                "-" if speed is None else Cell.of(speed.value, speed.low, speed.high).text() + unclear,
                Cell.of(comparison.per_round(run, "emitted_per_round")).text(),
                Cell.of(None if acceptance is None else 100 * acceptance, digits=1).text(),
                verdict_text(facts),
            )
        )
    widths = [max(len(row[i]) for row in [*rows, _HEADS]) for i in range(len(_HEADS))]

    def line(cells: Sequence[str]) -> str:
        shown = [
            c.ljust(w) if i in (0, len(widths) - 1) else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(shown).rstrip()[:WIDTH]

    head = wrapped(f"{comparison.data}, {comparison.pair}, {comparison.runs['machine'].iloc[0]}", "")
    below = [part for note in comparison.notes for part in wrapped(note, "  ")]
    if not all(is_ranked(facts) for _, facts in comparison.runs.iterrows()):
        below.append("  * not ranked: lossy, or the output is not the target's")
    if any(" ?" in row[3] for row in rows):
        below.append("  ? not told from 1: the interval contains it, lies in the noise floor, or there is none")
    return [*head, line(_HEADS), "-" * min(WIDTH, sum(widths) + 2 * (len(widths) - 1)), *map(line, rows), *below]


def table_text(table: Table) -> str:
    """A report's table for a terminal: as many columns as fit, the others by name; title and notes around it."""
    columns = [c for c in table.columns if any(row.cell(c.key).value is not None for row in table.rows)]
    widths = {c.key: max(len(c.label), *(len(row.cell(c.key).text()) for row in table.rows)) for c in columns}
    for column in columns:  # a heading over one column widens it, a heading over several has room
        if [c.group for c in columns].count(column.group) == 1:
            widths[column.key] = max(widths[column.key], len(column.group))
    shown: list[Column] = []
    for column in columns:
        if sum(widths[c.key] + 2 for c in shown) + widths[column.key] > WIDTH:
            break
        shown.append(column)

    def line(cells: Sequence[str]) -> str:
        parts = zip(shown, cells, strict=True)
        padded = (text.ljust(widths[c.key]) if c.text else text.rjust(widths[c.key]) for c, text in parts)
        return "  ".join(padded).rstrip()[:WIDTH]

    lines = wrapped(table.title, "")
    if any(c.group for c in shown):
        place = iter(shown)
        spans = [(label, [next(place) for _ in range(count)]) for label, count in label_spans([c.group for c in shown])]
        rooms = [(label, sum(widths[c.key] + 2 for c in own) - 2) for label, own in spans]
        lines.append("  ".join(label[:room].center(room) for label, room in rooms).rstrip())
    lines.append(line([c.label for c in shown]))
    lines.append("-" * min(WIDTH, sum(widths[c.key] + 2 for c in shown) - 2))
    section = ""
    before: dict[str, str] = {}
    for row in table.rows:
        if row.section != section:
            section, before = row.section, {}
            lines += wrapped(f"{section}:", "")
        entries = {c.key: row.cell(c.key).text() for c in shown}
        merged = [c.key for c in shown if c.merge]
        same = {key for i, key in enumerate(merged) if all(before.get(k) == entries[k] for k in merged[: i + 1])}
        lines.append(line(["" if c.key in same else entries[c.key] for c in shown]))
        before = entries
    rest = [_head(c) for c in columns[len(shown) :]]
    lines += wrapped(f"further columns in tables/{table.name}.csv: {'; '.join(rest)}", "  ") if rest else []
    return "\n".join([*lines, *(part for note in table.notes for part in wrapped(note, "  "))])


def _head(column: Column) -> str:
    return ": ".join(part for part in (column.group, column.label) if part)


def wrapped(text: str, indent: str = "") -> list[str]:
    """Lines of at most WIDTH columns, broken at spaces; a longer word (a path) is cut where it must be."""
    lines: list[str] = []
    room = WIDTH - len(indent)
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= room:
            lines[-1] += f" {word}"
        else:
            lines += [word[i : i + room] for i in range(0, len(word), room)]
    return [indent + line for line in lines]
