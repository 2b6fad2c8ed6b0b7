"""One file per experiment: what `python -m specbench experiment=<name>` ends in, made from its stored runs alone.

    python -m specbench experiment=NAME                                  runs its jobs, then writes runs/sweeps/NAME/report/
    python -m specbench.analysis runs/sweeps/NAME --experiment NAME      the same report again

An experiment is two files of one name: conf/experiment/<name>.yaml says what is run, analysis/experiments/<name>.py what is
made of it. Without the second one the front door writes the standard report. The second file holds

    TITLE: str                                                the report's heading
    def fill(doc: Document, frames: Frames) -> Table          adds tables, figures and text; returns the table to print

`fill` gets an empty document and every run of the experiment that could be read; what stands around its part (how many runs,
stand-in data, warnings, what was left out, provenance) is added here. It must hold to the rules of the whole analysis: numbers
from `frames` alone; runs under different conditions may stand side by side but are never averaged or ranked (see
`conditions.groups`: each temperature and each baseline is a group of its own); whatever was not measured says so with its
reason; every table has n, estimator and definitions in its caption, every figure its data; no table or figure takes a name that
another one of the report has. It raises ValueError, in one line, where the runs cannot carry the experiment at all (none of its
methods is there); a part of the jobs missing makes a smaller table with a note. A module with USES_REPETITIONS = True takes
runs that repeat one another for its subject: they are not listed as left out. Names that begin with `_` are no experiments.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Protocol, cast

from specbench.analysis.derive.conditions import groups, state_differences
from specbench.analysis.read.frames import Frames, load
from specbench.analysis.reports import writing
from specbench.analysis.show import text
from specbench.analysis.show.document import Document
from specbench.analysis.show.run_tables import left_out_table
from specbench.analysis.show.table import Table


class Experiment(Protocol):
    """What the module of an experiment holds."""

    TITLE: str

    def fill(self, doc: Document, frames: Frames) -> Table: ...


def known() -> list[str]:
    """Names of the experiments that have a report of their own."""
    stems = (entry.name.removesuffix(".py") for entry in files(__name__).iterdir() if entry.name.endswith(".py"))
    return sorted(stem for stem in stems if not stem.startswith("_"))


def find(name: str) -> Experiment:
    """The module of an experiment. Raises ValueError for a name that has none."""
    if name not in known():
        raise ValueError(f"experiment {name!r} has no report of its own; those that have: {', '.join(known())}")
    return cast(Experiment, import_module(f"{__name__}.{name}"))


def report(paths: Iterable[str | Path], out: str | Path, name: str, *, unfinished: bool = False) -> tuple[Path, str]:
    """Write an experiment's report into `out`; returns the path of report.html, and the main table as text with the warnings.

    Raises ValueError for an unknown experiment, and when the runs cannot carry it.
    """
    experiment = find(name)
    doc, table = document(load(paths, unfinished=unfinished), experiment)
    warnings = [line for block in doc.blocks if block.kind == "warning" for line in text.wrapped(f"note: {block.text}")]
    return doc.save(Path(out)), "\n".join([text.table_text(table), *warnings])


def document(frames: Frames, experiment: Experiment) -> tuple[Document, Table]:
    """The report of loaded frames, and its main table. Raises ValueError if the runs cannot carry the experiment."""
    writing.require_runs(frames)
    doc = Document(experiment.TITLE)
    writing.opening(doc, frames)
    _states(doc, frames)
    table = experiment.fill(doc, frames)
    repeated = [] if getattr(experiment, "USES_REPETITIONS", False) else [item for g in groups(frames) for item in g.left_out]
    doc.add(left_out_table([*frames.left_out, *repeated]), level=2)
    writing.closing(doc, frames)
    return doc, table


def _states(doc: Document, frames: Frames) -> None:
    """Runs of one experiment differ in what it varies; that code or machine changed meanwhile is said aloud."""
    first: dict[str, int] = {}
    for run, facts in frames.facts.items():
        first.setdefault(str((facts.get("provenance") or {}).get("conditions_hash")), run)
    if len(first) > 1:
        one, *others = first.values()
        apart = [difference for other in others for difference in state_differences(frames.facts[one], frames.facts[other])]
        doc.warning(
            f"Code, packages or machine changed between the runs ({len(first)} states; {'; '.join(dict.fromkeys(apart))}). "
            "Each state has tables of its own, and nothing is compared between them: one of them may hold a part of the jobs."
        )
