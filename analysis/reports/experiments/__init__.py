"""One file per experiment: what `python -m specbench experiment=<name>` ends in, made from its stored runs alone.

    python -m specbench experiment=NAME                                  runs its jobs, then writes runs/sweeps/NAME/report/
    python -m specbench.analysis runs/sweeps/NAME --experiment NAME      the same report again

An experiment is three files of one name: conf/experiment/<name>.yaml says what is run, <name>.py here what is made of it, and
<name>.yaml beside it what is said: titles, columns, captions, sentences (see `words`). Without the two here the front door
writes the standard report. <name>.py ends in `STUDY`, a `study.Study`: which runs make a chapter, the table, the figures. What
every experiment has is in `study` and is written there, once.

What is added here must hold to the rules of the whole analysis: numbers from the frames alone; runs under different conditions
may stand side by side but are never averaged or ranked (see `conditions.groups`: each temperature and each baseline is a group
of its own); whatever was not measured says so with its reason; every table has n, estimator and definitions in its caption,
every figure its data; no table or figure takes a name that another one of the report has. Runs that cannot carry the experiment
at all are refused in one line; a part of the jobs missing makes a smaller table with a note. File names, columns and captions
stay: notebooks and papers read them. Names that begin with `_` are no experiments.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from specbench.analysis.read.frames import load
from specbench.analysis.reports.study import Study
from specbench.analysis.show import text


def known() -> list[str]:
    """Names of the experiments that have a report of their own."""
    stems = (entry.name.removesuffix(".py") for entry in files(__name__).iterdir() if entry.name.endswith(".py"))
    return sorted(stem for stem in stems if not stem.startswith("_"))


def has_experiment(name: str) -> bool:
    """Whether an experiment has a report of its own."""
    return name in known()


def find(name: str) -> Study[Any]:
    """The study of an experiment. Raises ValueError for a name that has none."""
    if not has_experiment(name):
        raise ValueError(f"experiment {name!r} has no report of its own; those that have: {', '.join(known())}")
    study: Study[Any] = import_module(f"{__name__}.{name}").STUDY
    return study


def report(name: str, paths: Iterable[str | Path], out: str | Path, *, unfinished: bool = False) -> tuple[Path, str]:
    """Write an experiment's report into `out`; returns the path of report.html, and the main table as text with the warnings
    and what was left out.

    Raises ValueError for an unknown experiment, and when the runs cannot carry it.
    """
    frames = load(paths, unfinished=unfinished)
    doc, table = find(name).document(frames)
    warnings = [line for block in doc.blocks if block.kind == "warning" for line in text.wrapped(f"note: {block.text}")]
    return doc.save(Path(out)), "\n".join([text.table_text(table), *warnings, *text.left_out_lines(frames.left_out)])
