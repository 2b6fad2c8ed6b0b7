"""Two runs in a terminal: one paragraph and one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specbench.analysis.derive.derive import Estimate
from specbench.analysis.derive.outputs import Agreement
from specbench.analysis.derive.two import Two, two_runs
from specbench.analysis.show.captions import verdict_text
from specbench.analysis.show.cells import Cell, Column, Row
from specbench.analysis.show.table import Table
from specbench.analysis.show.text import table_text, wrapped
from specbench.config.say import counted

MOST_SETTINGS = 16  # rows of the table
_LONGEST = 40  # signs of a setting's value
A, B = "A", "B"


def compare_two(one: str | Path, other: str | Path, *, unfinished: bool = False) -> str:
    """What tells two runs apart, and what came of it. Raises ValueError, see `derive.two.two_runs`."""
    two = two_runs(one, other, unfinished=unfinished)
    return "\n".join([*wrapped(" ".join(_sentences(two))), "", table_text(_table(two))])


def _sentences(two: Two) -> list[str]:
    runs = two.frames.runs
    said = [
        f"{name} is {runs.at[run, 'method']} on {runs.at[run, 'data']} ({runs.at[run, 'folder']})"
        for run, name in enumerate((A, B))
    ]
    names = list(two.settings)
    listed = ", ".join(names[:MOST_SETTINGS]) + (
        f" and {len(names) - MOST_SETTINGS} more" if len(names) > MOST_SETTINGS else ""
    )
    differ = f"They differ in {listed}." if names else "All their settings are equal."
    state = f"Beside their settings differs: {'; '.join(two.state)}." if two.state else ""
    return [f"{'; '.join(said)}.", differ, state, _ratio(two), _outputs(two)]


def _ratio(two: Two) -> str:
    if two.ratio is None:
        return f"No ratio can be given: {two.why_not}."
    estimate = two.ratio
    common = f"On the {counted(two.num_common, 'sample')} that both finished"
    text = f"{common}, A's speed-up is {Cell.of(estimate.value).text()} times B's"
    if estimate.interval is None:
        return f"{text}, without an interval: it takes two samples."
    ends = f"95 % interval over prompts {estimate.low:.2f} to {estimate.high:.2f}"
    word = "contains" if estimate.interval[0] <= 1 <= estimate.interval[1] else "excludes"
    trust = "each over the baseline of its own run, for the two were not interleaved"
    return f"{text} ({ends}; {trust}): the interval {word} 1."


def _outputs(two: Two) -> str:
    found = two.outputs
    others = f" ({found.other_prompt} had other prompt ids)" if found.other_prompt else ""
    if not found.compared:
        return f"Their outputs were not compared: no output of both to the same prompt{others}."
    limit = f"up to the shorter limit of {_span(found.limits)} tokens" if found.limits else ""
    if not found.positions:
        if len(found.limits) == found.compared:
            return f"Their outputs are the same {limit}, all {found.compared}{others}."
        some = f"{len(found.limits)} of {found.compared} {limit}" if limit else f"all {found.compared}"
        return f"Their outputs are the same, {some}{others}."
    cut = f"; the same {limit} are {len(found.limits)}" if limit else ""
    return (
        f"Their outputs are NOT the same: {len(found.positions)} of {found.compared} differ, "
        f"the earliest from token {min(found.positions)} on{cut}{others}."
    )


def _same_output(found: Agreement) -> str:
    same = found.identical + len(found.limits)
    return f"{same}/{found.compared} up to the shorter limit" if found.limits else found.text()


def _span(numbers: Sequence[int]) -> str:
    ends = sorted({min(numbers), max(numbers)})
    return " to ".join(map(str, ends))


def _table(two: Two) -> Table:
    columns = [
        Column("what", "", text=True),
        *(Column(name, f"{name}: {two.frames.runs.at[run, 'method']}", text=True) for run, name in enumerate((A, B))),
    ]
    shown = list(two.settings.items())[:MOST_SETTINGS]
    rows = [_row(name, _value(one), _value(other), "Settings") for name, (one, other) in shown]

    def of_both(label: str, of: Any) -> None:
        cells = [of(two.frames.runs.loc[run].to_dict()) for run in (0, 1)]
        if any(cell.value is not None for cell in cells):
            rows.append(Row({"what": Cell(label), A: cells[0], B: cells[1]}, "Results"))

    def number(name: str, digits: int = 2, factor: float = 1.0) -> Any:
        return lambda run: _text(Cell.of(factor * run[name], digits=digits))

    of_both("samples in both arms", number("num_prompts", 0))
    of_both("tokens/s", number("tokens_per_second", 1))
    of_both("baseline's tokens/s", number("baseline_tokens_per_second", 1))
    of_both("speed-up [95 % over prompts]", lambda run: _text(_ends(run, "speedup")))
    of_both("  95 % over repeats", lambda run: Cell(_ends(run, "speedup_repeats", "speedup").interval or None))
    of_both("emitted per round", number("emitted_per_round"))
    of_both("acceptance %", number("acceptance_rate", 1, 100.0))
    of_both("output and its baseline's", lambda run: Cell(verdict_text(run)))
    if two.ratio is not None:
        rows.append(_row("speed-up, A over B", _estimate(two.ratio).text(), None, "Results"))
    if two.outputs.compared:
        rows.append(_row("same output, A and B", _same_output(two.outputs), None, "Results"))
    return Table("two", "", columns, rows, "")


def _row(label: str, one: str | None, other: str | None, section: str) -> Row:
    return Row({"what": Cell(label), A: Cell(one), B: Cell(other)}, section)


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else "null" if value is None else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _estimate(estimate: Estimate) -> Cell:
    return Cell.of(estimate.value, estimate.low, estimate.high)


def _ends(run: dict[str, Any], name: str, value: str = "") -> Cell:
    return Cell.of(run[value or name], run[f"{name}_low"], run[f"{name}_high"])


def _text(cell: Cell) -> Cell:
    return Cell(None if cell.value is None else cell.text())
