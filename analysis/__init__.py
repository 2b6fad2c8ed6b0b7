"""Tables, figures and reports from stored runs alone (never torch).

    python -m specbench.analysis RUNS... [--out DIR] [--across machines] [--reference] [--notebook]

    from specbench.analysis import compare, report
    print(compare(["runs"]))                # one table of text
    report(["runs"], "report")              # report/report.html, report.md, tables/, figures/
    frames = load(["runs"])                 # frames.runs, frames.samples, frames.rounds; columns: specbench.analysis.columns

Rooms: `frames` and `reading` load, `conditions` says what may be compared, `derive` and `theory` compute, `paper_tables`,
`run_tables`, `across` and `reference` make tables, `figures_*` draw, `text`, `document` and `writing` write. Heavy libraries
are imported when a function is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specbench.analysis.frames import Frames

__all__ = ["compare", "load", "report"]


def compare(folders: Sequence[str | Path], **options: Any) -> str:
    """One comparison table as text of at most 120 columns. See `specbench.analysis.text.compare`."""
    from specbench.analysis import text

    return text.compare(folders, **options)


def report(folders: Sequence[str | Path], out: str | Path, **options: Any) -> Path:
    """Write a report; returns the path of report.html. See `specbench.analysis.writing.report`."""
    from specbench.analysis import writing

    return writing.report(folders, out, **options)


def load(folders: Sequence[str | Path], **options: Any) -> Frames:
    """Data frames of stored runs. See `specbench.analysis.frames.load`."""
    from specbench.analysis import frames

    return frames.load(folders, **options)
