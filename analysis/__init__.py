"""Tables, figures and reports from stored runs alone (never torch).

    python -m specbench.analysis RUNS... [--out DIR] [--across machines] [--reference] [--notebook]
    python -m specbench.analysis RUNS --experiment NAME     an experiment's own report again, into RUNS/report
    python -m specbench.analysis compare RUN RUN            two runs side by side

    from specbench.analysis import compare, report
    print(compare(["runs"]))                # one table of text
    report(["runs"], "report")              # report/report.html, report.md, tables/, figures/
    frames = load(["runs"])                 # frames.runs, frames.samples, frames.rounds; columns: read.columns

Rooms, each using those before it: `read` loads, `derive` computes, `show` makes tables and figures, `reports` writes whole
reports, those of the named experiments too. Heavy libraries are imported when one of the functions is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specbench.analysis.read.frames import load
    from specbench.analysis.reports.experiments import has_experiment
    from specbench.analysis.reports.experiments import report as experiment
    from specbench.analysis.reports.writing import report
    from specbench.analysis.show.text import compare
    from specbench.analysis.show.two import compare_two

__all__ = ["compare", "compare_two", "experiment", "has_experiment", "load", "report"]
_PLACES = {
    "compare": "show.text.compare",
    "compare_two": "show.two.compare_two",
    "experiment": "reports.experiments.report",
    "has_experiment": "reports.experiments.has_experiment",
    "load": "read.frames.load",
    "report": "reports.writing.report",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, function = _PLACES[name].rpartition(".")
    return getattr(import_module(f"{__name__}.{module}"), function)
