"""AMUSD's open question 2: which ratio of draft size to target size is best for asynchronous drafting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Estimate, ratio_of_speedups
from specbench.analysis.derive.families import model_name
from specbench.analysis.derive.ranking import is_ranked
from specbench.analysis.derive.theory import theory
from specbench.analysis.read.frames import Frames
from specbench.analysis.reports import study
from specbench.analysis.reports.study import Chapter
from specbench.analysis.reports.words import Words
from specbench.analysis.show import check_tables, figures_speed
from specbench.analysis.show.cells import Cell, mark_columns
from specbench.analysis.show.document import Document
from specbench.analysis.show.members import WHY_NOT_RANKED
from specbench.analysis.show.run_tables import told_from_one
from specbench.analysis.show.style import Drawing, new_panels, styled
from specbench.analysis.show.table import Table

WORDS = Words(__name__)
METHOD = "amusd"
MARKS = {"best": "\nbest", "not told apart": "\n≈ best"}  # in the map, by what the table says


@dataclass(frozen=True)
class Point(study.Case):
    """One pair of sizes on one data set. against: how it stands against the best of them; said: of the best, in a sentence."""

    gain: Estimate
    target: str
    draft: str
    size_ratio: float
    is_ranked: bool
    against: str = "not ranked"
    said: str = ""

    @property
    def name(self) -> str:
        return f"{self.draft} : {self.target}"

    @cached_property
    def cost_ratio(self) -> float:
        """Measured time of a draft forward over the target's time per token."""
        times = theory(self.comparison.frames, pd.Index([self.run]))
        return float(times["t_draft_ms"].iloc[0] / times["t_ar_ms"].iloc[0]) if len(times) else np.nan

    @property
    def told_from_1(self) -> str | None:
        return told_from_one(self.group, self.comparison, self.run)

    @property
    def emitted_per_round(self) -> float | None:
        return self.per_round("emitted_per_round")

    @property
    def size(self) -> float:
        return self.cost_ratio if np.isnan(self.size_ratio) else self.size_ratio


def cases_of(frames: Frames, groups: Sequence[Group]) -> list[Point]:
    """The method's runs by data set, larger targets first (their ratios to one draft are smaller), then smaller drafts."""
    found = []
    for case in study.cases_in(frames, groups):
        facts, gain = case.facts, case.speedup
        if facts["method"] == METHOD and gain is not None:
            target, draft = model_name(facts["target"]), model_name(facts["draft"])
            found.append(Point.of(case, gain, target, draft, float(facts["size_ratio"]), is_ranked(facts)))
    points = [point for data in study.data_of(found) for point in judged([p for p in found if p.data == data])]
    return study.by_data(points, lambda point: (_size(points, target=point.target), point.size))


def _size(points: Sequence[Point], **part: str) -> float:
    """Mean size of the points of a target or a draft."""
    ((name, value),) = part.items()
    sizes = [p.size for p in points if getattr(p, name) == value and not np.isnan(p.size)]
    return float(np.mean(sizes)) if sizes else 0.0


# ---------------------------------------------------------------------------------------------------- the best one
def judged(points: Sequence[Point]) -> list[Point]:
    """The points of a data set with which of those that are ranked has the largest speed-up, and which are not told from it.

    Two ratios are told apart when the 95 % interval of the ratio of their speed-ups, each over its own run's baseline and
    paired by prompt, excludes 1. The best of several noisy figures is too good: that is why the others are named.
    """
    ranked = [point for point in points if point.is_ranked]
    if not ranked:
        return list(points)
    best = max(ranked, key=lambda point: point.gain.value)
    against = {point.run: _against(best, point) for point in ranked}
    equal = [point.name for point in ranked if point is not best and not against[point.run].startswith("less")]
    said = WORDS.say(
        "best",
        best=best,
        gain=Cell.of(best.gain.value, best.gain.low, best.gain.high).text(),
        size=_one_to(best.size_ratio),
        cost=_one_to(best.cost_ratio),
        not_told_from_1=best.gain.low is not None and best.gain.low <= 1 <= (best.gain.high or 1.0),
        alone=len(ranked) == 1,
        equal=equal,
    )
    return [replace(p, against=against.get(p.run, p.against), said=said if p is best else "") for p in points]


def _one_to(ratio: float) -> str:
    """The number that a ratio below 1 is one to; empty where the ratio is not known."""
    return "" if np.isnan(ratio) else f"{1 / ratio:.1f}"


def _against(best: Point, other: Point) -> str:
    if other is best:
        return "best"
    ratio = ratio_of_speedups(best.pairs, other.pairs)
    if ratio is None or ratio.interval is None:
        return "no interval"
    low, high = ratio.interval
    return "not told apart" if low <= 1 <= high else f"less ({ratio.value:.2f} [{low:.2f}, {high:.2f}])"


def say(doc: Document, chapter: Chapter[Point]) -> None:
    for point in chapter.cases:
        if point.said:
            doc.text(point.said)


# ---------------------------------------------------------------------------------------------------- table
def table_of(chapter: Chapter[Point]) -> Table:
    points, notes = chapter.cases, study.notes_of(chapter.cases)
    if all(point.energy.get("joules_per_token") is None for point in points):
        notes.append(WORDS.say("no_energy", why=check_tables.why_no_energy(chapter.frames)))
    table = WORDS.table(chapter, "amusd_ratio", notes, setting=study.setting_of(points))
    for row, point in zip(table.rows, points, strict=True):
        row.ranked = point.is_ranked
    for data in study.data_of(points):
        mark_columns(table.columns, [row for row in table.rows if row.cell("data").text() == data])
    return table


# ---------------------------------------------------------------------------------------------------- figures
def map_figure(chapter: Chapter[Point]) -> Drawing:
    """A map per data set: target down, draft across, the speed-up in numbers with its interval, darker where larger."""
    points = chapter.cases
    targets = sorted(dict.fromkeys(p.target for p in points), key=lambda name: _size(points, target=name))
    drafts = sorted(dict.fromkeys(p.draft for p in points), key=lambda name: _size(points, draft=name))
    low, high = min(p.gain.value for p in points), max(p.gain.value for p in points)
    data = study.data_of(points)
    with styled():
        panels = new_panels(len(data), across=2, top=0.5, each=0.75 + 0.62 * len(targets))
        for axis, name in zip(panels.axes, data, strict=True):
            for p in (p for p in points if p.data == name):
                column, row = drafts.index(p.draft), targets.index(p.target)
                shade = 0.0 if high == low else (p.gain.value - low) / (high - low)
                grey = 0.98 - 0.6 * shade  # light to dark: printed in grey it stays the same map
                axis.fill_between([column - 0.5, column + 0.5], row - 0.5, row + 0.5, facecolor=str(grey), edgecolor="white")
                ink = "white" if grey < 0.55 else "black"
                ends = "" if p.gain.low is None else f"\n[{p.gain.low:.2f}, {p.gain.high:.2f}]"
                text = f"{p.gain.value:.2f}{'' if p.is_ranked else ' *'}{ends}{MARKS.get(p.against, '')}"
                axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=7, linespacing=1.15)
            axis.set(title=name, xlabel="draft", xlim=(-0.5, len(drafts) - 0.5), ylim=(len(targets) - 0.5, -0.5))
            axis.set_xticks(range(len(drafts)), drafts)
            axis.set_yticks(range(len(targets)), targets)
            axis.grid(visible=False)
            axis.tick_params(length=0)
            axis.spines[["left", "bottom"]].set_visible(False)
        for axis in panels.left:
            axis.set_ylabel("target")
    names = ("data", "target", "draft", "size_ratio", "cost_ratio")
    rows = [
        {name: getattr(p, name) for name in names}
        | {"speedup": p.gain.value, "low": p.gain.low, "high": p.gain.high, "ranked": p.is_ranked}
        for p in points
    ]
    starred = "" if all(p.is_ranked for p in points) else WHY_NOT_RANKED
    setting = study.setting_of(points)
    return WORDS.drawing("speedup_by_ratio", panels.figure, pd.DataFrame(rows), starred=starred, setting=setting)


STUDY = study.Study(
    **WORDS.study,
    chapters=study.by_family(cases_of),
    say=say,
    table=table_of,
    shown=(
        map_figure,
        study.standard(figures_speed.against_size_ratio),
        lambda chapter: check_tables.noise_floor_table(chapter.groups[0]),
    ),
)
