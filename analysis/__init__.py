"""Tables, figures and reports from stored runs alone (never torch).

    python -m specbench.analysis RUNS... [--out DIR] [--across machines] [--reference] [--notebook]
    python -m specbench.analysis RUNS --experiment NAME     an experiment's own report again, into RUNS/report

    from specbench.analysis import compare, report
    print(compare(["runs"]))                # one table of text
    report(["runs"], "report")              # report/report.html, report.md, tables/, figures/
    frames = load(["runs"])                 # frames.runs, frames.samples, frames.rounds; columns: read.columns

Rooms, each using those before it: `read` loads, `derive` computes, `show` makes tables and figures, `reports` writes whole
reports, those of the named experiments too. Heavy libraries are imported when a function is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specbench.analysis.read.frames import Frames

__all__ = ["compare", "experiment", "has_experiment", "load", "report"]


def compare(folders: Sequence[str | Path], **options: Any) -> str:
    """One comparison table as text of at most 120 columns. See `specbench.analysis.show.text.compare`."""
    from specbench.analysis.show import text

    return text.compare(folders, **options)


def report(folders: Sequence[str | Path], out: str | Path, **options: Any) -> Path:
    """Write a report; returns the path of report.html. See `specbench.analysis.reports.writing.report`."""
    from specbench.analysis.reports import writing

    return writing.report(folders, out, **options)


def has_experiment(name: str) -> bool:
    """Whether an experiment has a report of its own."""
    from specbench.analysis.reports import experiments

    return name in experiments.known()


def experiment(name: str, folders: Sequence[str | Path], out: str | Path) -> tuple[Path, str]:
    """Write an experiment's own report; returns the path of report.html and its main table as text."""
    from specbench.analysis.reports import experiments

    return experiments.report(folders, out, name)


def load(folders: Sequence[str | Path], **options: Any) -> Frames:
    """Data frames of stored runs. See `specbench.analysis.read.frames.load`."""
    from specbench.analysis.read import frames

    return frames.load(folders, **options)
