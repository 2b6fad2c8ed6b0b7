"""The table of a sweep where the analysis has none to give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specbench.front.sweep import Sweep, interval_text


def plain_table(sweep: Sweep) -> str:
    """One line per job, from the stored summaries alone."""
    from rich.table import Table

    from specbench.run.console import console_on, text_of

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for title in ("options", "data", "status", "tokens/s", "speed-up", "95 % over prompts", "per round", "lossless"):
        table.add_column(title, overflow="fold")
    for job in sweep.jobs:
        summary = job.summary() or {}
        speedup: Mapping[str, Any] = summary.get("speedup") or {}
        rate, per_round = summary.get("decode_tokens_per_second"), summary.get("emitted_per_round")
        table.add_row(
            sweep.varying(job),
            str((summary.get("data") or {}).get("name", job.config.data.name)),
            job.status,
            "-" if rate is None else f"{rate:.1f}",
            _marked(speedup) if speedup else "-",
            interval_text(speedup.get("ci95")),
            "-" if per_round is None else f"{per_round:.2f}",
            str((summary.get("lossless") or {}).get("verdict", "-")),
        )
    console = console_on()
    if not console.is_terminal:
        console.width = 10_000  # a line is a job, however long: for grep
    return text_of(table, console)


def _marked(speedup: Mapping[str, Any]) -> str:
    """A speed-up, with a question mark where it is not told from noise."""
    return f"{speedup['ratio_of_totals']:.3f}x" + ("" if speedup.get("distinguishable", True) else " ?")
