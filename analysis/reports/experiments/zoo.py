"""Every method on a slice of every data set, side by side: speed, drafts, memory, output, what is trained, what is kept."""

from __future__ import annotations

from collections.abc import Sequence

from specbench.analysis.derive.conditions import Group
from specbench.analysis.read.frames import Frames
from specbench.analysis.read.shape import entry
from specbench.analysis.reports import study
from specbench.analysis.reports.study import Chapter, Study
from specbench.analysis.reports.words import Words
from specbench.analysis.show.table import Table

WORDS = Words(__name__)


class Animal(study.Case):
    """One method on one data set."""

    @property
    def emitted_per_round(self) -> float | None:
        return self.per_round("emitted_per_round")

    @property
    def memory_mib(self) -> float | None:
        found = (self.comparison.frames.summaries[self.run].get("memory") or {}).get("predicted_total_bytes")
        return None if found is None else found / 2**20

    @property
    def training(self) -> str:
        return "heads" if "heads" in (entry(self.run_facts, "config.method") or {}) else "-"

    @property
    def state(self) -> str | None:
        """None in runs that did not record it."""
        scope = entry(self.run_facts, "scopes.method")
        return None if scope is None else {"sample": "cold", "session": "kept"}[str(scope)]


def cases_of(frames: Frames, groups: Sequence[Group]) -> list[Animal]:
    """Runs with a speed-up, by data set, methods by name."""
    found = [Animal.of(case) for case in study.cases_in(frames, groups) if case.speedup is not None]
    return study.by_data(found, lambda case: str(case.facts["method"]))


def table_of(chapter: Chapter[Animal]) -> Table:
    setting = study.setting_of(chapter.cases)
    return WORDS.table(chapter, "zoo", study.notes_of(chapter.cases), setting=setting)


STUDY = Study(**WORDS.study, chapters=study.by_family(cases_of), table=table_of)
