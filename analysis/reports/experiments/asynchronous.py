"""Every asynchronous schedule on one pair, beside the sequential one: speed, bound, what was foreseen and what was wasted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import pandas as pd

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.theory import theory
from specbench.analysis.read.frames import Frames
from specbench.analysis.reports import study
from specbench.analysis.reports.study import Chapter, Study
from specbench.analysis.reports.words import Words
from specbench.analysis.show import check_tables
from specbench.analysis.show.table import Table

WORDS = Words(__name__)
ORDER = ("sequential", "free-running", "lockstep", "foreseeing")
NO_FORMULA = "no formula"  # a chain of drafts, say


class Schedule(study.Case):
    """One method on one data set."""

    @cached_property
    def theory(self) -> dict[str, float | str]:
        """Its row of `derive.theory`; empty where the formulas do not apply."""
        rows = theory(self.comparison.frames, pd.Index([self.run]))
        return {str(name): value for name, value in rows.iloc[0].items() if value == value} if len(rows) else {}

    @property
    def schedule(self) -> str:
        return str(self.theory.get("schedule", NO_FORMULA))

    @property
    def reached_percent(self) -> float | None:
        reached = self.theory.get("reached")
        return None if reached is None else 100 * float(reached)

    @property
    def hits_percent(self) -> float | None:
        hits = self.theory.get("hits")
        return None if hits is None else 100 * float(hits)

    @property
    def waits_percent(self) -> float | None:
        """Share of the decode time in which the target waited."""
        seconds = self.comparison.frames.summaries[self.run].get("seconds") or {}
        total = sum(seconds.values())
        return 100 * seconds.get("wait", 0.0) / total if total else None

    @property
    def wasted_per_token(self) -> float | None:
        """Tokens drafted and not kept, those prepared in vain included, per token of the output."""
        summary = self.comparison.frames.summaries[self.run]
        unused = (summary.get("counted") or {}).get("unused_tokens", 0)
        tokens = summary.get("decode_tokens")
        return (summary["num_discarded"] + unused) / tokens if tokens else None

    @property
    def num_devices(self) -> int | None:
        return self.run_facts.get("num_devices")


def cases_of(frames: Frames, groups: Sequence[Group]) -> list[Schedule]:
    """Runs with a speed-up, by data set, the sequential schedule first."""
    found = [Schedule.of(case) for case in study.cases_in(frames, groups) if case.speedup is not None]

    def place(case: Schedule) -> tuple[int, str]:
        name = case.schedule
        return (ORDER.index(name) if name in ORDER else len(ORDER), str(case.facts["method"]))

    return study.by_data(found, place)


def table_of(chapter: Chapter[Schedule]) -> Table:
    setting = study.setting_of(chapter.cases)
    return WORDS.table(chapter, "asynchronous", study.notes_of(chapter.cases), setting=setting)


STUDY = Study(
    **WORDS.study,
    chapters=study.by_family(cases_of),
    table=table_of,
    shown=(lambda chapter: check_tables.noise_floor_table(chapter.groups[0]),),
)
