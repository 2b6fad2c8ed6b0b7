"""The skeleton of an experiment's report: chapters of equal conditions, each with its cases, a table, sentences and figures.

An experiment is a `Study`, the description of what is its own. What all of them have is here: which runs stand together, that
the largest part comes first under the plain file names, that runs which cannot carry it are refused in one line, and what is
said around it (how many runs, stand-in data, warnings, what was left out, provenance).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from specbench.analysis.derive.conditions import Group, groups, state_differences
from specbench.analysis.derive.derive import Comparison, Estimate, comparisons
from specbench.analysis.derive.families import families
from specbench.analysis.read.frames import Frames
from specbench.analysis.reports import writing
from specbench.analysis.show import captions
from specbench.analysis.show.cells import Column, row_of
from specbench.analysis.show.document import Document
from specbench.analysis.show.members import Member
from specbench.analysis.show.run_tables import left_out_table
from specbench.analysis.show.style import Drawing
from specbench.analysis.show.table import Table


class OfData(Protocol):
    @property
    def data(self) -> str: ...


C = TypeVar("C")
D = TypeVar("D", bound=OfData)


@dataclass(frozen=True)
class Case(Member):
    """A run, or one arm of it, in its group: a row of a table, a mark in a figure."""

    group: Group

    @classmethod
    def of(cls, case: Case, *own: Any) -> Self:
        """The case with what an experiment says of it beside."""
        return cls(case.comparison, case.run, case.facts, case.group, *own)

    @property
    def data(self) -> str:
        return self.comparison.data

    @property
    def lossless(self) -> str:
        return captions.verdict_text(self.facts)

    def condition(self, name: str) -> Any:
        return self.group.conditions.get(name)


@dataclass
class Chapter(Generic[C]):
    """Cases that may stand in one table, of runs that differ in nothing but what the experiment varies.

    heading: where it is not the study's own. number: from 1, among the chapters that have cases.
    """

    frames: Frames
    cases: list[C]
    groups: Sequence[Group] = ()
    heading: str = ""
    number: int = field(default=1, init=False)

    def named(self, name: str) -> str:
        """A file name of this chapter: the first one has the plain name."""
        return name if self.number == 1 else f"{name}_{self.number}"

    def table(
        self, name: str, title: str, columns: Iterable[Column], caption: str, notes: Iterable[str] = (), items: Any = None
    ) -> Table:
        """A row per case (or item), nothing ranked."""
        columns = list(columns)
        rows = [row_of(columns, item, ranked=False) for item in (self.cases if items is None else items)]
        return Table(name, title, columns, rows, caption, list(dict.fromkeys(notes)))


@dataclass(frozen=True, kw_only=True)
class Study(Generic[C]):
    """What is an experiment's own.

    title: the report's. heading: of chapters that bring none of their own. nothing: one line for runs that cannot carry it.
    chapters: of loaded frames, the one that counts most first; those without a case are passed over. table: a chapter's, the
    first one is what is printed. shown: what else a chapter shows, in order; None where there is nothing to show. say:
    sentences and warnings before the table. after: what follows all chapters. uses_repetitions: runs that repeat one another
    are its subject, and not left out.
    """

    title: str
    heading: str = ""
    nothing: str
    chapters: Callable[[Frames], Iterable[Chapter[C]]]
    table: Callable[[Chapter[C]], Table]
    shown: Sequence[Callable[[Chapter[C]], Table | Drawing | None]] = ()
    say: Callable[[Document, Chapter[C]], None] | None = None
    after: Callable[[Document, Sequence[Chapter[C]]], None] | None = None
    uses_repetitions: bool = False

    def document(self, frames: Frames) -> tuple[Document, Table]:
        """The report of loaded frames, and the table to print. Raises ValueError if the runs cannot carry the experiment."""
        writing.require_runs(frames)
        doc = Document(self.title)
        writing.opening(doc, frames)
        _states(doc, frames)
        _few(doc, frames)
        found = [chapter for chapter in self.chapters(frames) if chapter.cases]
        if not found:
            raise ValueError(self.nothing)
        tables = []
        for number, chapter in enumerate(found, start=1):
            chapter.number = number
            doc.heading(chapter.heading or self.heading + (f", conditions {number}" if number > 1 else ""))
            if self.say is not None:
                self.say(doc, chapter)
            tables.append(self.table(chapter))
            for item in (tables[-1], *(show(chapter) for show in self.shown)):
                if item is not None:
                    item.name = chapter.named(item.name)
                    doc.add(item)
        if self.after is not None:
            self.after(doc, found)
        repeated = [] if self.uses_repetitions else [item for group in groups(frames) for item in group.left_out]
        doc.add(left_out_table([*frames.left_out, *repeated]), level=2)
        writing.closing(doc, frames)
        return doc, tables[0]


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


def _few(doc: Document, frames: Frames) -> None:
    """Where a data set has one prompt, whatever the tables say is no finding."""
    most: dict[str, int] = {}
    for run, pairs in frames.pairs.items():
        data = str(frames.runs.at[run, "data"])
        most[data] = max(most.get(data, 0), len(pairs))
    one = [data for data, number in most.items() if number == 1]
    if one:
        doc.warning(f"One prompt on {', '.join(one)}: there is no interval, and nothing is told apart by it.")


# ---------------------------------------------------------------------------------------------------- which cases
def by_family(
    cases_of: Callable[[Frames, Sequence[Group]], list[C]], varied: Iterable[str] = ()
) -> Callable[[Frames], Iterator[Chapter[C]]]:
    """A chapter for the groups that differ in nothing but `varied`, the largest family first. See `derive.families`."""
    return lambda frames: (Chapter(frames, cases_of(frames, family), family) for family in families(frames, varied))


def standard(
    draw: Callable[[Frames, Group, Sequence[Comparison]], Drawing | None],
) -> Callable[[Chapter[Any]], Drawing | None]:
    """A figure of the standard report, of a chapter's first case's group."""
    return lambda chapter: draw(chapter.frames, group := chapter.cases[0].group, comparisons(chapter.frames, group))


def cases_in(frames: Frames, groups: Iterable[Group]) -> Iterator[Case]:
    """Every run of the groups, by pair and data set."""
    for group in groups:
        for comparison in comparisons(frames, group):
            for run, facts in comparison.runs.iterrows():
                yield Case(comparison, int(run), facts, group)


def by_data(cases: Iterable[D], then: Callable[[D], Any] = lambda case: 0) -> list[D]:
    """The data sets in order of their first appearance, the cases of each by `then`; equal ones keep their order."""
    cases = list(cases)
    order = data_of(cases)
    return sorted(cases, key=lambda case: (order.index(case.data), then(case)))


def data_of(cases: Iterable[OfData]) -> list[str]:
    """The cases' data sets, each once."""
    return list(dict.fromkeys(case.data for case in cases))


# ---------------------------------------------------------------------------------------------------- what is said of cases
def ends_of(name: str, estimate: Estimate | None) -> dict[str, float]:
    """An estimate in a figure's data: its value under `name`, and the ends of its interval; NaN where there is none."""
    parts = {name: "value", f"{name}_low": "low", f"{name}_high": "high"}
    found = {key: getattr(estimate, part, None) for key, part in parts.items()}
    return {key: np.nan if value is None else value for key, value in found.items()}


def comparisons_of(cases: Iterable[Case]) -> list[Comparison]:
    """The cases' comparisons, each once."""
    return list({id(case.comparison): case.comparison for case in cases}.values())


def setting_of(cases: Sequence[Case], **conditions: Any) -> str:
    """n, law and hardware of the cases, under the first one's conditions but for those that are given here."""
    return captions.setting({**cases[0].group.conditions, **conditions}, comparisons_of(cases))


def notes_of(cases: Iterable[Case]) -> list[str]:
    """What is said below a table about how its cases were compared."""
    return [note for comparison in comparisons_of(cases) for note in comparison.notes]
