"""The page that follows a sweep: what became of its jobs, where the running one stands, and the table so far.

It reads summaries alone: comparing on common prompts is the report's, when all has ended.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from specbench.analysis.derive.derive import Estimate
from specbench.analysis.read.following import STATES, Followed, Job, number_at, started_at
from specbench.analysis.read.shape import entry
from specbench.analysis.show import render
from specbench.analysis.show.cells import Cell, Column, Row, row_of
from specbench.analysis.show.table import Table
from specbench.config.say import counted

MOST_SWEEPS, MOST_JOBS = 4, 200
_LONGEST = 300  # signs of an error


def page(followed: Sequence[Followed], reload_seconds: int) -> str:
    """One HTML page, without scripts, that reloads itself."""
    shown = followed[:MOST_SWEEPS]
    sweeps = [{"sweep": sweep, "table": so_far(sweep), "jobs": _in_turn(sweep.jobs)[:MOST_JOBS]} for sweep in shown]
    facts = {"now": time.strftime("%H:%M:%S"), "more": len(followed) - len(shown), "reload": reload_seconds}
    return str(
        render.form("live").page(
            sweeps, {"progress": progress, "counted": counted, "started": started_at, "text": _short, **facts}
        )
    )


def _in_turn(jobs: Sequence[Job]) -> list[Job]:
    """What is under way first, then what went wrong; in each the order of the sweep."""
    order = ("running", "silent", "failed", "interrupted", "unreadable", "done", "waiting", "left out")
    assert set(order) == set(STATES)
    return sorted(jobs, key=lambda job: order.index(job.status))


def progress(job: Job) -> str:
    """How far a run has come that has not ended, and what it did last."""
    if not job.num_lines:
        return "loading models, warming up" if job.status == "running" else ""
    planned = "" if job.num_planned is None else f" of {job.num_planned}"
    said = [counted(f"{job.num_lines}{planned}", "sample")]
    last = job.last
    if last:
        turn = f" turn {last.get('turn')}" if last.get("turn") else ""
        said.append(f"last {last.get('sample_id')}{turn}, {last.get('arm')}, repeat {last.get('repeat')}")
        tokens, seconds = number_at(last, "num_emitted"), number_at(last, "decode_seconds")
        said.append(f"{tokens / seconds:.1f} tokens/s" if tokens and seconds else str(last.get("finish_reason")))
    if job.status in ("running", "silent"):
        said.append(f"{_ago(job.silent_seconds)} ago")
    return _short(", ".join(said))


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def so_far(sweep: Followed) -> Table:
    """One row per finished job, from its summary."""

    def number(name: str, factor: float = 1.0) -> Any:
        def found(job: Job) -> float | None:
            value = number_at(job.summary, name)
            return None if value is None else factor * value

        return found

    def speedup(ends: str) -> Any:
        def found(job: Job) -> Estimate | None:
            value, interval = number_at(job.summary, "speedup.ratio_of_totals"), entry(job.summary, f"speedup.{ends}")
            two = isinstance(interval, list) and len(interval) == 2
            low, high = (number_at({"x": end}, "x") for end in interval) if two else (None, None)
            return None if value is None else Estimate(value, low, high)

        return found

    def over_repeats(job: Job) -> Cell:
        found = speedup("ci95_repeats")(job)
        return Cell(None) if found is None else Cell(Cell.of(found.value, found.low, found.high).interval or None)

    columns = [
        Column("run", "run", text=True, of=lambda job: job.label),
        Column("data", "data", text=True, of=lambda job: _text(entry(job.summary, "data.name"))),
        Column("n", "n", digits=0, of=number("speedup.num_prompts")),
        Column("tokens_per_second", "tokens/s", digits=1, of=number("decode_tokens_per_second")),
        Column("speedup", "speed-up", of=speedup("ci95")),
        Column("over_repeats", "over repeats", of=over_repeats),
        Column("emitted_per_round", "emitted/round", of=number("emitted_per_round")),
        Column("acceptance_percent", "acceptance %", digits=1, of=number("acceptance_rate", 100)),
        Column("lossless", "lossless", text=True, of=lambda job: _text(entry(job.summary, "lossless.verdict"))),
    ]
    rows: list[Row] = [row_of(columns, job) for job in sweep.jobs if job.status == "done"][:MOST_JOBS]
    caption = (
        "Speed-up: ratio of totals over the run's own baseline, with its 95 % interval over prompts, beside the one over "
        "repeats. Each run on all its prompts: the report compares on those that all have."
    )
    return Table("so_far", "The table so far", columns, rows, caption).drop_empty_columns()


def _text(value: Any) -> str | None:
    return None if value is None else _short(str(value).replace("_", " "))


def _short(text: object) -> str:
    said = str(text)
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
