"""A run as tables ask about it, and the columns that many tables have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from specbench.analysis.derive.derive import Comparison, Estimate, agreement
from specbench.analysis.derive.ranking import is_lossy, is_ranked, keeps_text
from specbench.analysis.show.captions import verdict_text
from specbench.analysis.show.cells import Column, Row, mark_columns, row_of
from specbench.measure.pairing import PairedTimes

LOSSY_PART = "Lossy methods (other text than the target's: not ranked)"
WRONG_PART = "Output differs from the target's although the method claims otherwise: not ranked"
UNUSABLE_PART = "A warning makes the number unusable: not ranked"
PARTS = ("", UNUSABLE_PART, WRONG_PART, LOSSY_PART)  # of a table, in this order
WHY_NOT_RANKED = "not ranked: the output is not the target's, or a warning makes the number unusable"


@dataclass(frozen=True)
class Member:
    """A run of a comparison: its number, and its row of `Group.runs`."""

    comparison: Comparison
    run: int
    facts: pd.Series

    @property
    def run_facts(self) -> dict[str, Any]:
        """run.json."""
        return self.comparison.frames.facts[self.run]

    @property
    def pairs(self) -> PairedTimes:
        return self.comparison.pairs(self.run)

    @cached_property
    def speedup(self) -> Estimate | None:
        return self.comparison.speedup(self.run)

    @cached_property
    def tokens_per_second(self) -> float | None:
        return self.comparison.rates(self.run)[0]

    @property
    def ms_per_token(self) -> float | None:
        return 1e3 / self.tokens_per_second if self.tokens_per_second else None

    @property
    def acceptance_percent(self) -> float | None:
        share = self.per_round("acceptance_rate")
        return None if share is None else 100 * share

    def right_percent(self, arm: str = "") -> float | None:
        """Right answers of the method, or of its baseline, in percent of those graded; None where none was."""
        graded, right = (self.facts[f"{arm}{name}"] for name in ("num_graded", "num_right"))
        return 100 * right / graded if graded == graded else None

    @cached_property
    def agreement(self) -> dict[str, float]:
        return agreement(str(self.facts["folder"]), self.comparison.only)

    @property
    def energy(self) -> dict[str, Any]:
        """The energy entry of the run's summary; empty without one."""
        return self.comparison.frames.summaries[self.run].get("energy") or {}

    @property
    def verdict(self) -> dict[str, Any]:
        """The lossless entry, likewise."""
        return self.comparison.frames.summaries[self.run].get("lossless") or {}

    def per_round(self, name: str) -> float | None:
        return self.comparison.per_round(self.run, name)

    @cached_property
    def figures(self) -> dict[str, float | None]:
        return self.comparison.figures(self.run)


def members(*comparisons: Comparison) -> Iterator[Member]:
    return (Member(c, int(run), facts) for c in comparisons for run, facts in c.runs.iterrows())


def part_of(facts: pd.Series) -> str:
    """The section of a run's row: none for ranked ones."""
    return "" if is_ranked(facts) else LOSSY_PART if is_lossy(facts) else UNUSABLE_PART if keeps_text(facts) else WRONG_PART


def in_parts(rows: Sequence[Row]) -> list[Row]:
    """Ranked rows first; the order is kept otherwise."""
    return sorted(rows, key=lambda row: PARTS.index(row.section))


def ranked_rows(columns: Sequence[Column], items: Sequence[Member]) -> list[Row]:
    """A row for each of a comparison's runs, in the part where it belongs, the best of the ranked ones in bold."""
    rows = [row_of(columns, item, part_of(item.facts), is_ranked(item.facts)) for item in items]
    mark_columns(columns, rows)
    return rows


# Of anything with `facts`, a row of `Group.runs`
PAIR = Column("pair", "pair", merge=True, text=True, of=lambda item: str(item.facts["pair_label"]))
DATA = Column("data", "data", merge=True, text=True, of=lambda item: str(item.facts["data_label"]))
METHOD = Column("method", "method", text=True, of=lambda item: str(item.facts["label"]))
RUN = (PAIR, DATA, METHOD)
LOSSLESS = Column("lossless", "lossless", text=True, of=lambda item: verdict_text(item.facts))
# Of members
RIGHT = Column("right_percent", "right answers %", digits=1, of=lambda m: m.right_percent())
BASELINE_RIGHT = Column("baseline_right_percent", "baseline's %", digits=1, of=lambda m: m.right_percent("baseline_"))
TOKENS_PER_SECOND = Column("tokens_per_second", "tokens/s", digits=1, best="largest", of=lambda m: m.tokens_per_second)
MS_PER_TOKEN = Column("ms_per_token", "ms/token", best="smallest", of=lambda m: m.ms_per_token)
SPEEDUP = Column("speedup", "speed-up", best="largest", of=lambda m: m.speedup)
EMITTED = Column("emitted_per_round", "emitted/round", best="largest", of=lambda m: m.per_round("emitted_per_round"))
ACCEPTED_RUN = Column("accepted_run_length", "accepted run", best="largest", of=lambda m: m.per_round("accepted_run_length"))
